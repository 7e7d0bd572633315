/**
 * What a manifest says: its layers, or which manifest of a list is meant. Pure.
 * Sources: OCI image-spec, manifest.md and image-index.md; distribution, docs/spec/manifest-v2-2.
 */
import {AdaptorError} from '../core/errors.ts';
import {member} from './json.ts';
import {digestPattern} from './reference.ts';

/** All that can be read here. */
export const manifestTypes = [
	'application/vnd.oci.image.index.v1+json',
	'application/vnd.docker.distribution.manifest.list.v2+json',
	'application/vnd.oci.image.manifest.v1+json',
	'application/vnd.docker.distribution.manifest.v2+json',
] as const;
const maxLayers = 1000;

/** For error messages. */
type Where = Readonly<Record<string, string>>;

/** A blob as a manifest names it. */
export interface Descriptor {
	readonly digest: string;
	/** Bytes. */
	readonly size: number;
}

export interface ImageManifest {
	/** Of the manifest itself. */
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
	const layers = member(manifest, 'layers');
	if (!Array.isArray(layers) || layers.length === 0 || layers.length > maxLayers) {
		throw damaged('the manifest is not that of a container image: it has no layers', where);
	}

	return layers.map(layer => descriptorOf(layer, where));
}

function descriptorOf(value: unknown, where: Where): Descriptor {
	const [digest, size] = [member(value, 'digest'), member(value, 'size')];
	if (
		typeof digest !== 'string' ||
		!digestPattern.test(digest) ||
		typeof size !== 'number' ||
		!Number.isSafeInteger(size) ||
		size < 0
	) {
		throw damaged('the manifest names a blob without a proper digest and size', where);
	}

	return {digest, size};
}

/**
 * The digest of the manifest for the platform; the only one's, whatever it is for: images that only carry a file are
 * often built anywhere.
 */
export function chooseOf(list: readonly unknown[], {os, architecture}: Platform, where: Where): string {
	const candidates = list.map(entry => {
		const words = ['os', 'architecture'].map(name => member(member(entry, 'platform'), name));
		return {
			digest: descriptorOf(entry, where).digest,
			name: words.map(word => (typeof word === 'string' ? word : 'unknown')).join('/'),
		};
	});
	// Attestations are listed as being for nothing known.
	const real = candidates.filter(({name}) => name !== 'unknown/unknown');
	const chosen =
		candidates.find(({name}) => name === `${os}/${architecture}`) ??
		(real.length === 1 ? real[0] : candidates.length === 1 ? candidates[0] : undefined);
	if (chosen === undefined) {
		throw new AdaptorError({
			code: 'not-found',
			what: `Could not choose an image of the manifest list: none is for ${os}/${architecture}`,
			where: {...where, platforms: [...new Set(candidates.map(({name}) => name))].slice(0, 20).join(', ')},
			remedy: 'Name the image that is meant by its digest.',
		});
	}

	return chosen.digest;
}

export function parseJson(bytes: Buffer, what: string, where: Where): unknown {
	try {
		return JSON.parse(bytes.toString());
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
