/** Writes single keys of an existing config map: the configuration of the adaptor in the cluster. */
import {AdaptorError} from '../core/errors.ts';
import type {KubernetesClient} from './client.ts';
import {isNotFound} from './errors.ts';
import type {Kind, ObjectName} from './objects.ts';

const configMaps: Kind<unknown> = {
	apiVersion: 'v1',
	kind: 'ConfigMap',
	plural: 'configmaps',
	isNamespaced: true,
	read: () => ({}),
};

/**
 * Sets these keys and leaves all others.
 * @throws AdaptorError 'not-found' if there is no such config map; KubernetesError
 */
export async function writeConfigMap(
	client: KubernetesClient,
	name: ObjectName,
	data: Readonly<Record<string, string>>,
	signal: AbortSignal,
): Promise<void> {
	try {
		await client.patch(configMaps, name, {merge: {data}}, signal);
	} catch (error) {
		throw isNotFound(error)
			? new AdaptorError({
					code: 'not-found',
					what: 'The config map does not exist',
					where: {...name},
					remedy: 'Create it, or name its namespace with -namespace.',
					cause: error,
				})
			: error;
	}
}
