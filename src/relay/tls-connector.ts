/** Connects to the forwarder in a VM over TCP and mutual TLS, which proves that it is the VM. */
import {dial, type DialTarget} from './dial.ts';
import {keepAliveMs, type DialTimings} from './redial-policy.ts';
import {onlyAddress, type VmConnector} from './vm-connector.ts';

/** @param again timings for a VM that was reached before */
export function tlsConnector(target: DialTarget, again: Partial<DialTimings>): VmConnector {
	const targetAgain = {...target, timings: {...target.timings, ...again}};
	const connect = async (
		addresses: AsyncIterable<string>,
		to: DialTarget,
		signal: AbortSignal,
	): ReturnType<VmConnector['find']> => {
		const {address, socket} = await dial(addresses, to, signal);
		socket.setKeepAlive(true, keepAliveMs);
		return {address, socket};
	};

	return {
		find: async (addresses, signal) => connect(addresses, target, signal),
		reconnect: async (address, signal) => (await connect(onlyAddress(address), targetAgain, signal)).socket,
	};
}
