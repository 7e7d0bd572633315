/** Finds the pod that an operator means. Pure. */
import {AdaptorError} from '../core/errors.ts';
import type {Pod} from './contract.ts';

type PodNames = Pick<Pod, 'sandbox_id' | 'namespace' | 'name' | 'instance_name'>;

/** Shorter beginnings of a sandbox id are more likely the name of a pod. */
const leastIdLength = 8;

/**
 * @param text `namespace/name`, a name, the name of a VM, or the first digits of a sandbox id
 * @throws AdaptorError 'not-found'; 'invalid-argument' if several match
 */
export function findPod<P extends PodNames>(pods: readonly P[], text: string): P {
	const found = [
		(pod: PodNames) => `${pod.namespace}/${pod.name}` === text,
		(pod: PodNames) => pod.instance_name === text || pod.sandbox_id === text,
		(pod: PodNames) => pod.name === text,
		(pod: PodNames) => text.length >= leastIdLength && pod.sandbox_id.startsWith(text),
	]
		.map(isMeant => pods.filter(isMeant))
		.find(({length}) => length > 0);
	const [pod] = found ?? [];
	if (found === undefined || pod === undefined) {
		throw new AdaptorError({
			code: 'not-found',
			what: `This node has no pod VM ${JSON.stringify(text)}`,
			remedy: '"cloud-api-adaptor pods" lists those that it has. Run it in the osc-caa-ds pod of the node of the pod.',
		});
	}

	if (found.length > 1) {
		throw new AdaptorError({
			code: 'invalid-argument',
			what: `${JSON.stringify(text)} may be any of ${found.map(each => `${each.namespace}/${each.name} (${each.sandbox_id.slice(0, 12)})`).join(', ')}`,
			remedy: 'Use the id of the sandbox, or namespace/name.',
		});
	}

	return pod;
}
