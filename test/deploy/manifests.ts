/**
 * The manifests of deploy/ as objects: built as a user builds them, by kubectl, and read as kubectl reads them. Knows
 * no kind but what these tests walk over.
 */
import {execFile} from 'node:child_process';
import {readFileSync, readdirSync} from 'node:fs';
import {join} from 'node:path';
import {promisify} from 'node:util';
import type {LabelSelector, ObjectMeta} from 'kubernetes-types/meta/v1.js';
import type {Container, PodSpec} from 'kubernetes-types/core/v1.js';
import {parseAllDocuments} from 'yaml';

export interface Manifest {
	apiVersion: string;
	kind: string;
	metadata: ObjectMeta & {name: string};
}

/** A kind whose pods we make. */
export interface Workload extends Manifest {
	spec: {selector?: LabelSelector; template: {metadata?: ObjectMeta; spec: PodSpec}};
}

export const deployDirectory = join(import.meta.dirname, '../../deploy');
export const overlays = readdirSync(join(deployDirectory, 'overlays')).toSorted();

/** `kubectl kustomize`, without the warnings of newer ones about what older ones need. */
export async function build(directory: string): Promise<Manifest[]> {
	const {stdout} = await promisify(execFile)('kubectl', ['kustomize', join(deployDirectory, directory)], {
		maxBuffer: 16 << 20,
	});
	return parse(stdout);
}

/**
 * YAML 1.1, in which kubectl reads: there `yes` and `0600` are no text.
 * @throws Error for a document with a mistake or a warning
 */
export function parse(text: string): Manifest[] {
	return parseAllDocuments(text, {version: '1.1', uniqueKeys: true}).map(document => {
		const [problem] = [...document.errors, ...document.warnings];
		if (problem !== undefined) {
			throw problem;
		}

		return document.toJS() as Manifest;
	});
}

export function read(file: string): Manifest[] {
	return parse(readFileSync(join(deployDirectory, file), 'utf8'));
}

/** Every file of the directory. */
export function samples(): Manifest[] {
	return readdirSync(join(deployDirectory, 'samples')).flatMap(name => read(join('samples', name)));
}

export function ofKind<T extends Manifest>(manifests: readonly Manifest[], ...kinds: readonly string[]): T[] {
	return manifests.filter(({kind}) => kinds.includes(kind)) as T[];
}

export function workloads(manifests: readonly Manifest[]): Workload[] {
	return ofKind<Workload>(manifests, 'DaemonSet', 'Deployment', 'Job');
}

export function containersOf({spec}: Workload): Container[] {
	return [...(spec.template.spec.initContainers ?? []), ...spec.template.spec.containers];
}
