/**
 * Why a file or volume is not a usable pod VM image. The caller adds the name of the file or volume.
 */
import {AdaptorError} from '../core/errors.ts';

export class UnfitImageError extends AdaptorError {
	override readonly name = 'UnfitImageError';
	/** As in "it is encrypted". */
	readonly why: string;
	override readonly remedy: string;

	/**
	 * @param code 'invalid-argument' if it is not an image, 'failed-precondition' if it must not be opened or cannot
	 * boot
	 */
	constructor(code: 'invalid-argument' | 'failed-precondition', why: string, remedy: string) {
		super({code, what: `Could not use the file as a pod VM image: ${why}`, remedy});
		this.why = why;
		this.remedy = remedy;
	}
}

export function notAnImage(why: string, remedy = 'Use a qcow2 or raw disk image.'): UnfitImageError {
	return new UnfitImageError('invalid-argument', why, remedy);
}

export function cutOff(why: string): UnfitImageError {
	return notAnImage(
		`${why}: it is truncated or damaged`,
		'Compare its size with the original, and run "qemu-img check".',
	);
}

export function unsafe(why: string, remedy: string): UnfitImageError {
	return new UnfitImageError('failed-precondition', why, remedy);
}
