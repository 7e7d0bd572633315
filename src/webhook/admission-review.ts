/**
 * Answers one AdmissionReview. Decides which pods are changed; mutation.ts decides how. No I/O. Source of the
 * documents: Kubernetes, "Dynamic Admission Control", admission.k8s.io/v1.
 */
import {AdaptorError, echoed} from '../core/errors.ts';
import {mutation, type MutationPolicy} from './mutation.ts';
import {malformed, member, objectAt, parsePod, type JsonObject} from './pod.ts';
import type {PodSize} from './pod-size.ts';
import {checkResources, invalidReason} from './resource-rules.ts';
import {podWarnings} from './warnings.ts';

export interface ReviewPolicy extends MutationPolicy {
	/** Only pods with this runtime class are changed. */
	readonly runtimeClass: string;
	readonly excludedNamespaces: readonly string[];
}

export interface Answer {
	/** An AdmissionReview with a response, to be sent as JSON. */
	readonly review: unknown;
	/** Namespace and name, or the prefix of a generated name; absent if no Pod was read. */
	readonly pod?: string;
	/** The requested size of a changed pod. */
	readonly size?: PodSize;
	/** The reason of a denial. */
	readonly denial?: string;
	/** What the pod asks for and does not get; the user reads the same text. */
	readonly warnings?: readonly string[];
}

const apiVersion = 'admission.k8s.io/v1';
const kind = 'AdmissionReview';

/**
 * @param document the parsed body
 * @returns a denial for a request that cannot be understood, if it has a uid
 * @throws AdaptorError 'invalid-argument' if it has none
 */
export function answerReview(document: unknown, policy: ReviewPolicy): Answer {
	if (typeof document !== 'object' || document === null || Array.isArray(document)) {
		throw malformed('The request', `an ${kind}`);
	}

	const given = document as JsonObject;
	if (member(given, 'kind') !== kind || member(given, 'apiVersion') !== apiVersion) {
		throw malformed('The request', `an ${kind} of ${apiVersion}`);
	}

	const request = objectAt(given, 'request', '');
	const uid = member(request, 'uid');
	if (typeof uid !== 'string' || uid === '') {
		throw malformed('request.uid', 'a string');
	}

	try {
		return answerRequest(uid, request, policy);
	} catch (error) {
		if (error instanceof AdaptorError && error.code === 'invalid-argument') {
			const [reason, code] = error.reason === invalidReason ? [invalidReason, 422] : ['BadRequest', 400];
			return {
				review: response({uid, allowed: false, status: {status: 'Failure', reason, code, message: error.what}}),
				denial: error.what,
			};
		}

		throw error;
	}
}

function answerRequest(uid: string, request: JsonObject, policy: ReviewPolicy): Answer {
	const unchanged = {review: response({uid, allowed: true})};
	if (!createsPod(request)) {
		return unchanged;
	}

	const document = objectAt(request, 'object', 'request.');
	const metadata = objectAt(document, 'metadata', 'request.object.');
	// The pod of a controller gets its namespace from the request.
	const namespace = text(metadata, 'namespace') || text(request, 'namespace');
	const identity = {pod: echoed(`${namespace}/${text(metadata, 'name') || text(metadata, 'generateName')}`)};
	if (
		policy.excludedNamespaces.includes(namespace) ||
		member(objectAt(document, 'spec', 'request.object.'), 'runtimeClassName') !== policy.runtimeClass
	) {
		return {...unchanged, ...identity};
	}

	const pod = parsePod(document);
	checkResources(pod, policy.extendedResource);
	const {patch, size} = mutation(pod, policy);
	const found = podWarnings(pod, document, policy.extendedResource);
	const warnings = found.length === 0 ? {} : {warnings: found};
	return patch.length === 0
		? {review: response({uid, allowed: true, ...warnings}), ...identity, ...warnings}
		: {
				review: response({
					uid,
					allowed: true,
					patchType: 'JSONPatch',
					patch: Buffer.from(JSON.stringify(patch)).toString('base64'),
					...warnings,
				}),
				...identity,
				size,
				...warnings,
			};
}

/** Not subresources: bindings and evictions are created too. */
function createsPod(request: JsonObject): boolean {
	const requested = objectAt(request, 'kind', 'request.');
	return (
		member(request, 'operation') === 'CREATE' &&
		text(request, 'subResource') === '' &&
		text(requested, 'group') === '' &&
		member(requested, 'version') === 'v1' &&
		member(requested, 'kind') === 'Pod'
	);
}

function text(parent: JsonObject, name: string): string {
	const value = member(parent, name);
	return typeof value === 'string' ? value : '';
}

function response(answer: JsonObject): JsonObject {
	return {apiVersion, kind, response: answer};
}
