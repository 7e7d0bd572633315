/** Calls the status API of the daemon on this node. */
import {AdaptorError} from '../core/errors.ts';
import {connect, type TtrpcClient} from '../ttrpc/client.ts';
import {loadStatusContract, statusMethod, type StatusMethod, type StatusMethods} from './contract.ts';

export class StatusClient implements AsyncDisposable {
	readonly #client: TtrpcClient;
	readonly #contract = loadStatusContract();

	private constructor(client: TtrpcClient) {
		this.#client = client;
	}

	/** @throws AdaptorError 'unavailable' if no daemon serves the socket; the reason of the signal */
	static async connect(path: string, signal: AbortSignal): Promise<StatusClient> {
		try {
			return new StatusClient(await connect(path, signal));
		} catch (error) {
			signal.throwIfAborted();
			throw new AdaptorError({
				code: 'unavailable',
				what: 'No daemon serves the status API on this node',
				where: {path},
				remedy: 'Run this command in the container of osc-caa-ds, with its environment: "oc exec POD -- cloud-api-adaptor pods".',
				cause: error,
			});
		}
	}

	/** @throws TtrpcError with the answer; 'unavailable' if the connection is lost; the reason of the signal */
	async call<Name extends StatusMethod>(
		name: Name,
		request: StatusMethods[Name][0],
		signal: AbortSignal,
	): Promise<StatusMethods[Name][1]> {
		return this.#client.call(statusMethod(this.#contract, name), request, {}, signal);
	}

	async [Symbol.asyncDispose](): Promise<void> {
		await this.#client.close();
	}
}
