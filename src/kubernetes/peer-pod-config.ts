/**
 * The current limit in the PeerPodConfig of the operator. Its custom resource definition may be missing, or be created
 * later. Source: cloud-api-adaptor, peerpodconfig-ctrl/api/v1alpha1; the OpenShift operator creates
 * `peerpodconfig-openshift` in its namespace.
 */
import type {Logger} from '../core/log.ts';
import {FailureLog} from '../core/concurrency/failure-log.ts';
import type {KubernetesClient} from './client.ts';
import {isKindMissing} from './errors.ts';
import {textAt} from '../core/json.ts';
import type {ApiObject, Kind} from './objects.ts';

interface PeerPodConfig {
	readonly limit: string | undefined;
}

const peerPodConfigs: Kind<PeerPodConfig> = {
	apiVersion: 'confidentialcontainers.org/v1alpha1',
	kind: 'PeerPodConfig',
	plural: 'peerpodconfigs',
	isNamespaced: true,
	read: raw => ({limit: textAt(raw, 'spec', 'limit')}),
};

export interface LimitSource {
	readonly client: KubernetesClient;
	/** The namespace of the daemon, which is that of the operator. */
	readonly namespace: string;
	readonly log: Logger;
}

const name = 'peerpodconfig-openshift';

/**
 * Calls `onLimit` with each new limit, and with undefined when there is none, or when it cannot be known. A limit that
 * is no number changes nothing. Ends only with the signal, without an error.
 */
export async function followLimit(
	{client, namespace, log}: LimitSource,
	onLimit: (limit: number | undefined) => void,
	signal: AbortSignal,
): Promise<void> {
	const failures = new FailureLog();
	let isTold = false;
	const tellLimit = (limit: number | undefined): void => {
		isTold = true;
		onLimit(limit);
	};
	const tellFirst = (limit: number | undefined): void => {
		if (!isTold) {
			tellLimit(limit);
		}
	};
	const tell = (config: ApiObject<PeerPodConfig> | undefined): void => {
		const limit = config?.limit ?? '';
		const number = limit === '' ? undefined : parsedLimit(limit, log);
		if (limit === '' || number !== undefined) {
			tellLimit(number);
		} else {
			tellFirst(undefined);
		}
	};

	for await (const event of client.watch(
		peerPodConfigs,
		{namespace, fieldSelector: `metadata.name=${name}`},
		signal,
	)) {
		switch (event.type) {
			case 'all': {
				tell(event.objects[0]);
				break;
			}

			case 'refused': {
				if (isKindMissing(event.error)) {
					tellLimit(undefined);
					break;
				}

				if (failures.failed()) {
					log.warn({err: event.error}, 'could not watch PeerPodConfig; retrying');
				}

				tellFirst(undefined);
				break;
			}

			case 'changed':
			case 'deleted': {
				failures.recovered(); // Not earlier: permission to list does not include permission to watch.
				tell(event.type === 'deleted' ? undefined : event.object);
			}
		}
	}
}

function parsedLimit(text: string, log: Logger): number | undefined {
	if (/^\d{1,6}$/v.test(text)) {
		return Number(text);
	}

	log.warn(
		{reason: `spec.limit of ${name} is ${JSON.stringify(text.slice(0, 40))}, not a number`},
		'invalid limit in PeerPodConfig',
	);
	return undefined;
}
