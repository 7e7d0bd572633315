/**
 * The content of the cloud-init disk of a pod VM. Pure. Pod VM images read it once at boot: either by themselves
 * (strictly: in `write_files`, any key except `path` and `content` is an error) or through the NoCloud data source of
 * cloud-init, which reads a volume with the label `cidata`. Does not know the meaning of the files. Contents may be
 * secret: no error contains them.
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
 * `#cloud-config` with `write_files`. Every string is double-quoted, and all characters outside ASCII are escaped: YAML
 * parsers treat U+0085, U+FEFF, U+2028 and DEL differently when they are not escaped.
 * @throws AdaptorError 'invalid-argument' for a lone surrogate, which no encoding can represent
 */
export function cloudConfig(files: readonly GuestFile[]): string {
	const entries = files.map(({path, content}) => ({path, content: content.reveal()}));
	const broken = entries.find(({path, content}) => !path.isWellFormed() || !content.isWellFormed());
	if (broken !== undefined) {
		throw new AdaptorError({
			code: 'invalid-argument',
			what: "Could not write the pod VM's cloud-init disk: a file contains text that is not valid Unicode",
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
 * Keys and layout are ASCII, so all other characters are in double-quoted scalars (YAML 1.2, 5.7: `\xNN`, `\uNNNN`,
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
 * For cloud-init, a new `instance-id` means a new machine. Images that read user-data by themselves ignore both lines.
 */
function metaData(instanceName: string): string {
	return new Document({'instance-id': instanceName, 'local-hostname': instanceName}).toString();
}
