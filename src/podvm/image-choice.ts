/**
 * Selects the volume that a pod VM starts from. A pod names it in an annotation, so anyone who can create pods can
 * select any volume of the pool, with these limits: not by path, not a disk of a pod VM, and only volumes that
 * LIBVIRT_ALLOWED_IMAGES allows (if it is set). base-images.ts checks the content of the volume. Pure.
 */
import {AdaptorError} from '../core/errors.ts';
import {matchesGlob} from '../libvirt/glob.ts';
import {checkedText} from '../libvirt/xml.ts';

export interface ImagePolicy {
	/** LIBVIRT_VOL_NAME: the image of pods that choose none; always allowed. */
	readonly configured: string;
	/** LIBVIRT_ALLOWED_IMAGES: patterns for `matchesGlob`; all images if absent. */
	readonly allowed?: readonly string[];
}

/**
 * The names of the disks of pod VMs are derived from the names of their domains, and metadata with other names is not
 * trusted (own-domains.ts), so the name identifies them. `cloudinit` is the name in upstream: both adaptors may share a
 * pool.
 */
const diskOfPodVm = /^podvm-.*-(?:root\.qcow2|(?:cidata|cloudinit)\.iso)$/;

/**
 * @throws AdaptorError 'invalid-argument' if it is not the name of an image, 'permission-denied' if it is not allowed
 */
export function chosenImage(asked: string | undefined, {configured, allowed}: ImagePolicy): string {
	const image = asked ?? configured;
	const isPath = image.includes('/') || image === '.' || image === '..';
	if (image === '' || isPath || diskOfPodVm.test(image)) {
		throw new AdaptorError({
			code: 'invalid-argument',
			what: `Could not choose the image: ${isPath ? 'it is a path' : image === '' ? 'its name is empty' : 'it is the disk of a pod VM'}`,
			where: {image},
			remedy: 'Set io.katacontainers.config.hypervisor.image, or LIBVIRT_VOL_NAME, to the name of a volume in LIBVIRT_POOL.',
		});
	}

	if (image !== configured && allowed?.some(pattern => matchesGlob(pattern, image)) === false) {
		throw new AdaptorError({
			code: 'permission-denied',
			reason: 'ImageNotAllowed',
			what: 'Could not choose the image: pods may not use this volume',
			where: {image},
			remedy: 'Set io.katacontainers.config.hypervisor.image to another volume, or ask the administrator to add this volume to LIBVIRT_ALLOWED_IMAGES.',
		});
	}

	return checkedText('image', image, 255);
}
