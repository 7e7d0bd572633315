/**
 * Reads manifests: the layers of one, or the matching manifest of a list. Pure. Sources: OCI image-spec, manifest.md
 * and image-index.md; distribution, docs/spec/manifest-v2-2.
 */
import {AdaptorError} from '../core/errors.ts';
import {at, numberAt, parseJson, textAt} from '../core/json.ts';
import {digestPattern} from './reference.ts';

/** All supported media types. */
export const manifestTypes = [
	'application/vnd.oci.image.index.v1+json',
	'application/vnd.docker.distribution.manifest.list.v2+json',
	'application/vnd.oci.image.manifest.v1+json',
	'application/vnd.docker.distribution.manifest.v2+json',
] as const;
const maxLayers = 1000;

/** For error messages. */
type Where = Readonly<Record<string, string>>;

/** A blob in a manifest. */
export interface Descriptor {
	readonly digest: string;
	/** Bytes. */
	readonly size: number;
}

export interface ImageManifest {
	/** The media type of the manifest itself. */
	readonly digest: string;
	/** Lowest first. */
	readonly layers: readonly Descriptor[];
}

export interface Platform {
	readonly os: string;
	readonly architecture: string;
}

/** @throws AdaptorError 'data-loss' */
export function layersOf(manifest: unknown, where: Where): readonly Descriptor[] {
	const layers = at(manifest, 'layers');
	if (!Array.isArray(layers) || layers.length === 0 || layers.length > maxLayers) {
		throw damaged('the manifest does not describe a container image: it has no layers', where);
	}

	return layers.map(layer => descriptorOf(layer, where));
}

/**
 * The configuration blob of the image.
 * @throws AdaptorError 'data-loss'
 */
export function configOf(manifest: unknown, where: Where): Descriptor {
	return descriptorOf(at(manifest, 'config'), where);
}

/**
 * Missing fields are accepted: an artifact that is not a container image has none. Source: OCI image-spec, config.md.
 * @throws AdaptorError 'failed-precondition'
 */
export function checkPlatform(config: unknown, {os, architecture}: Platform, where: Where): void {
	const said = (name: string, otherwise: string): string => textAt(config, name) || otherwise;
	const found = `${said('os', os)}/${said('architecture', architecture)}`;
	if (found !== `${os}/${architecture}`) {
		throw otherPlatform(found, {os, architecture}, where);
	}
}

function otherPlatform(found: string, {os, architecture}: Platform, where: Where): AdaptorError {
	return new AdaptorError({
		code: 'failed-precondition',
		what: `Could not use the image: it is for another platform than ${os}/${architecture}`,
		where: {...where, platform: found.slice(0, 100)},
		remedy: `Name the image for ${os}/${architecture}. If only its label is wrong, pass its platform in -platform.`,
	});
}

function descriptorOf(value: unknown, where: Where): Descriptor {
	const [digest, size] = [textAt(value, 'digest'), numberAt(value, 'size')];
	if (
		digest === undefined ||
		!digestPattern.test(digest) ||
		size === undefined ||
		!Number.isSafeInteger(size) ||
		size < 0
	) {
		throw damaged('the manifest names a blob without a proper digest and size', where);
	}

	return {digest, size};
}

/**
 * The digest of the manifest for the platform, or of the only one if the list names no platforms.
 * @throws AdaptorError 'not-found', 'failed-precondition' if the only one is for another platform
 */
export function chooseOf(list: readonly unknown[], platform: Platform, where: Where): string {
	const wanted = `${platform.os}/${platform.architecture}`;
	const candidates = list.map(entry => {
		const words = ['os', 'architecture'].map(name => textAt(entry, 'platform', name) || 'unknown');
		return {
			digest: descriptorOf(entry, where).digest,
			name: words.join('/'),
		};
	});
	const chosen =
		candidates.find(({name}) => name === wanted) ??
		(candidates.length === 1 && candidates[0]?.name === 'unknown/unknown' ? candidates[0] : undefined);
	if (chosen !== undefined) {
		return chosen.digest;
	}

	// Attestations are listed with the platform "unknown".
	const names = [...new Set(candidates.map(({name}) => name).filter(name => name !== 'unknown/unknown'))];
	if (names.length === 1) {
		throw otherPlatform(names.join(''), platform, where);
	}

	throw new AdaptorError({
		code: 'not-found',
		what: `Could not choose an image of the manifest list: none is for ${wanted}`,
		where: {...where, platforms: names.slice(0, 20).join(', ').slice(0, 256)},
		remedy: 'Select an image by its digest, or by its platform with -platform.',
	});
}

export function parseDocument(bytes: Buffer, what: string, where: Where): unknown {
	try {
		return parseJson(bytes);
	} catch {
		throw damaged(`${what} is not JSON`, where);
	}
}

export function damaged(why: string, where: Where): AdaptorError {
	return new AdaptorError({
		code: 'data-loss',
		what: `Could not read the image: ${why}`,
		where,
		remedy: 'Push the image to the registry again, or fetch it from another one.',
	});
}
