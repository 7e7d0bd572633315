/**
 * Which volume a pod VM starts from. A pod names it in an annotation, so whoever may create pods chooses among what is
 * in the pool: never by a path, never a disk of a pod VM, and only what LIBVIRT_ALLOWED_IMAGES allows, where that is
 * set. What the volume holds is judged by base-images.ts. Pure.
 */
import {AdaptorError} from '../core/errors.ts';
import {matchesGlob} from '../libvirt/glob.ts';
import {checkedText} from '../libvirt/xml.ts';

export interface ImagePolicy {
	/** LIBVIRT_VOL_NAME: the image of pods that choose none; always allowed. */
	readonly configured: string;
	/** LIBVIRT_ALLOWED_IMAGES: patterns as `matchesGlob` takes them; all images when absent. */
	readonly allowed?: readonly string[];
}

/**
 * Names of pod VMs' disks are made of their domains' names, and metadata that says otherwise is not trusted
 * (own-domains.ts), so the name tells all there is to know. `cloudinit` is what the existing adaptor calls it: both may
 * share a pool.
 */
const diskOfPodVm = /^podvm-.*-(?:root\.qcow2|(?:cidata|cloudinit)\.iso)$/;

/**
 * @throws AdaptorError 'invalid-argument' for what is no name of an image, 'permission-denied' for one that is not
 * allowed
 */
export function chosenImage(asked: string | undefined, {configured, allowed}: ImagePolicy): string {
	const image = asked ?? configured;
	const isPath = image.includes('/') || image === '.' || image === '..';
	if (image === '' || isPath || diskOfPodVm.test(image)) {
		throw new AdaptorError({
			code: 'invalid-argument',
			what: `Could not choose the image: ${isPath ? 'it is a path' : image === '' ? 'its name is empty' : 'it is the disk of a pod VM'}`,
			where: {image},
			remedy: 'Name a volume of LIBVIRT_POOL in io.katacontainers.config.hypervisor.image, or in LIBVIRT_VOL_NAME.',
		});
	}

	if (image !== configured && allowed?.some(pattern => matchesGlob(pattern, image)) === false) {
		throw new AdaptorError({
			code: 'permission-denied',
			reason: 'ImageNotAllowed',
			what: 'Could not choose the image: pods may not use this volume',
			where: {image},
			remedy: 'Name another in io.katacontainers.config.hypervisor.image, or let the administrator add this one to LIBVIRT_ALLOWED_IMAGES.',
		});
	}

	return checkedText('image', image, 255);
}
