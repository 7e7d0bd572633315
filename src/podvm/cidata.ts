/**
 * The cloud-init disk of a pod VM: what is on it, as bytes. Pure. Pod VM images read it once at boot, either by
 * themselves (strictly: in `write_files`, any key but `path` and `content` is an error) or through cloud-init's NoCloud
 * data source, which takes its files from a volume with the label `cidata`. Knows nothing of what the files mean.
 * Contents may be secret: no error holds any.
 */
import {Document} from 'yaml';
import {AdaptorError} from '../core/errors.ts';
import type {GuestFile} from '../sandbox/ports.ts';
import {isoImage} from './iso9660.ts';

export function cidataIso(instanceName: string, files: readonly GuestFile[], createdAt: Date): Buffer {
	return isoImage({
		label: 'cidata',
		createdAt,
		files: [
			{name: 'user-data', content: Buffer.from(cloudConfig(files))},
			{name: 'meta-data', content: Buffer.from(metaData(instanceName))},
			{name: 'vendor-data', content: Buffer.alloc(0)},
		],
	});
}

/**
 * `#cloud-config` with `write_files`. Every string is double-quoted and the text is ASCII throughout, everything else
 * escaped: YAML parsers disagree about U+0085, U+FEFF, U+2028 and DEL when they stand there as themselves, never about
 * an escape.
 * @throws AdaptorError 'invalid-argument' for half a surrogate pair, which no encoding can carry
 */
export function cloudConfig(files: readonly GuestFile[]): string {
	const entries = files.map(({path, content}) => ({path, content: content.reveal()}));
	const broken = entries.find(({path, content}) => !path.isWellFormed() || !content.isWellFormed());
	if (broken !== undefined) {
		throw new AdaptorError({
			code: 'invalid-argument',
			what: "Could not write the pod VM's cloud-init disk: a file holds text that is not valid Unicode",
			where: {path: broken.path.toWellFormed()},
			remedy: 'Encode binary content, e.g. as base64.',
		});
	}

	const yaml = new Document({write_files: entries}).toString({
		defaultStringType: 'QUOTE_DOUBLE',
		defaultKeyType: 'PLAIN',
		doubleQuotedAsJSON: true,
		lineWidth: 0,
	});
	return `#cloud-config\n${escapeNonAscii(yaml)}`;
}

/**
 * Keys and layout are ASCII, so whatever is not stands in a double-quoted scalar (YAML 1.2, 5.7: `\xNN`, `\uNNNN`,
 * `\UNNNNNNNN`).
 */
function escapeNonAscii(yaml: string): string {
	return yaml.replaceAll(/[^\n -~]/gu, character => {
		const point = character.codePointAt(0) ?? 0;
		return point > 0xff_ff ? `\\U${hex(point, 8)}` : `\\u${hex(point, 4)}`;
	});
}

function hex(point: number, digits: number): string {
	return point.toString(16).padStart(digits, '0');
}

/**
 * cloud-init takes a new `instance-id` for a new machine; images that read user-data by themselves look at neither
 * line.
 */
function metaData(instanceName: string): string {
	return new Document({'instance-id': instanceName, 'local-hostname': instanceName}).toString();
}
