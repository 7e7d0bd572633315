/**
 * Refuses the resources that Kubernetes itself would refuse, with the same error texts. Its validation runs after this
 * webhook and no longer sees what the webhook removes. A device that no pod VM has is refused too: without the webhook
 * the scheduler would find no node, with it the pod would start without the device. Names only the first problem, while
 * the API server lists all. Pure. Source: Kubernetes 1.30 to 1.34, pkg/apis/core/validation/validation.go
 * (validateResourceRequirements, validatePodResourceConsistency) and pkg/apis/core/helper. Claims are not checked: they
 * stay in the pod, where the API server sees them.
 */
import {AdaptorError, echoed} from '../core/errors.ts';
import type {Pod, Resources} from './pod.ts';
import {gpuResource, ofContainers} from './pod-size.ts';
import {inSteps, one, parseQuantity} from './quantity.ts';

/** Resources that Kubernetes allows without a domain in the name, besides huge pages. */
const containerResources = ['cpu', 'memory', 'ephemeral-storage'];
const podResources = ['cpu', 'memory'];
const hugePages = 'hugepages-';

const domain = /^(?=.{1,253}$)[a-z0-9](?:[\-a-z0-9]*[a-z0-9])?(?:\.[a-z0-9](?:[\-a-z0-9]*[a-z0-9])?)*$/v;
const nameInDomain = /^(?=.{1,63}$)[A-Za-z0-9](?:[\-A-Za-z0-9_.]*[A-Za-z0-9])?$/v;

/** Reason of the status of the API server for an invalid object; its code is 422. */
export const invalidReason = 'Invalid';

/** @throws AdaptorError 'invalid-argument' with the reason 'Invalid' for the first violated rule */
export function checkResources(pod: Pod, extendedResource: string): void {
	const devices = [gpuResource, extendedResource];
	for (const list of ['containers', 'initContainers'] as const) {
		for (const [index, {resources}] of pod[list].entries()) {
			checkPart(resources, `spec.${list}[${index}].resources`, containerResources, devices);
		}
	}

	checkPart(pod.resources, 'spec.resources', podResources, []);
	checkPodLevel(pod);
}

function checkPart(resources: Resources, where: string, standard: readonly string[], devices: readonly string[]): void {
	for (const list of ['limits', 'requests'] as const) {
		for (const [name, amount] of resources[list]) {
			const field = `${where}.${list}[${echoed(name)}]`;
			checkName(name, field, [...standard, ...devices]);
			checkAmount(name, amount, field, textOf(resources, list, name));
		}
	}

	for (const [name, amount] of resources.requests) {
		checkAgainstLimit(resources, where, name, amount);
	}

	const names = [...resources.limits.keys(), ...resources.requests.keys()];
	if (names.some(name => name.startsWith(hugePages)) && !names.some(name => name === 'cpu' || name === 'memory')) {
		throw invalid(`${where}: Forbidden: HugePages require cpu or memory`);
	}

	// Last, so that errors of Kubernetes come first. The scheduler does not check zero devices.
	for (const list of ['limits', 'requests'] as const) {
		for (const [name, amount] of resources[list]) {
			if (
				!standard.includes(name) &&
				!devices.includes(name) &&
				!name.startsWith(hugePages) &&
				(amount > 0n || devices.length === 0)
			) {
				throw invalid(
					`${where}.${list}[${echoed(name)}]: Unsupported value: ${JSON.stringify(echoed(name))}: ` +
						`supported values: ${[...standard, ...devices, hugePages].map(each => JSON.stringify(each)).join(', ')}`,
				);
			}
		}
	}
}

function checkName(name: string, field: string, known: readonly string[]): void {
	if (known.includes(name) || name.startsWith(hugePages)) {
		return;
	}

	const [prefix = '', rest, ...more] = name.split('/', 3);
	if (rest === undefined) {
		throw invalidValue(field, name, 'must be a standard resource type or fully qualified');
	}

	if (
		more.length > 0 ||
		!domain.test(prefix) ||
		!nameInDomain.test(rest) ||
		(isExtended(name) && name.startsWith('requests.'))
	) {
		throw invalidValue(field, name, "doesn't follow extended resource name standard");
	}
}

function checkAmount(name: string, amount: bigint, field: string, written: string): void {
	if (amount < 0n) {
		throw invalidValue(field, written, 'must be greater than or equal to 0');
	}

	// Kubernetes compares thousandths, rounded up.
	if (isExtended(name) && inSteps(amount, one / 1000n) % 1000n !== 0n) {
		throw invalidValue(field, written, 'must be an integer');
	}

	if (name.startsWith(hugePages)) {
		const page = parseQuantity(name.slice(hugePages.length));
		if (page === undefined || page <= 0n || page % one !== 0n || inSteps(amount, one) % (page / one) !== 0n) {
			throw invalidValue(field, written, `${written} is not positive integer multiple of ${echoed(name)}`);
		}
	}
}

function checkAgainstLimit(resources: Resources, where: string, name: string, amount: bigint): void {
	const limit = resources.limits.get(name);
	const mayBeOvercommitted = !isExtended(name) && !name.startsWith(hugePages);
	if (limit === undefined) {
		if (!mayBeOvercommitted) {
			throw invalid(`${where}.limits: Required value: Limit must be set for non overcommitable resources`);
		}

		return;
	}

	const relation =
		amount !== limit && !mayBeOvercommitted ? 'equal to' : amount > limit ? 'less than or equal to' : undefined;
	if (relation !== undefined) {
		// Kubernetes names the list here, not its resource.
		throw invalidValue(
			`${where}.requests`,
			textOf(resources, 'requests', name),
			`must be ${relation} ${echoed(name)} limit of ${textOf(resources, 'limits', name)}`,
		);
	}
}

/** The requests of the pod cover those of its containers, and no container may use more than the pod. */
function checkPodLevel(pod: Pod): void {
	for (const [name, amount] of pod.resources.requests) {
		const sum = ofContainers(pod, ({resources}) => resources.requests.get(name) ?? 0n);
		if (sum > amount) {
			throw invalidValue(
				`spec.resources.requests[${name}]`,
				textOf(pod.resources, 'requests', name),
				`must be greater than or equal to aggregate container requests of ${quantityText(sum)}`,
			);
		}
	}

	for (const [name, amount] of pod.resources.limits) {
		for (const [index, {resources}] of pod.containers.entries()) {
			if ((resources.limits.get(name) ?? 0n) > amount) {
				// The field in the form of Kubernetes.
				throw invalidValue(
					`spec.resources.containers[${index}][${name}].limits`,
					textOf(resources, 'limits', name),
					`must be less than or equal to pod limits of ${textOf(pod.resources, 'limits', name)}`,
				);
			}
		}
	}
}

/** Resources in the domain of Kubernetes count like those without a domain. */
function isExtended(name: string): boolean {
	return name.includes('/') && !name.includes('kubernetes.io/');
}

function quantityText(amount: bigint): string {
	return amount % one === 0n ? String(amount / one) : `${inSteps(amount, one / 1000n)}m`;
}

/** At most the maximum length of a quantity: longer text was not parsed. */
function textOf({written}: Resources, list: 'requests' | 'limits', name: string): string {
	return String(written[list][name]);
}

function invalidValue(field: string, value: string, rule: string): AdaptorError {
	return invalid(`${field}: Invalid value: ${JSON.stringify(echoed(value))}: ${rule}`);
}

function invalid(what: string): AdaptorError {
	return new AdaptorError({code: 'invalid-argument', reason: invalidReason, what});
}
