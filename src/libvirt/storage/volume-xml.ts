/** The XML of volumes and pools. Pure. Reference: libvirt, docs/formatstorage. */
import {create} from 'xmlbuilder2';
import {xmlText} from '../xml.ts';

export interface Backing {
	readonly path: string;
	readonly format: 'qcow2' | 'raw';
}

/** A volume that grows as it is written. @param capacity bytes */
export function volumeXml(name: string, format: 'qcow2' | 'raw', capacity: bigint, backing?: Backing): string {
	const volume = create().ele('volume', {type: 'file'});
	volume.ele('name').txt(xmlText('volume', name));
	volume.ele('capacity', {unit: 'bytes'}).txt(String(capacity));
	volume.ele('allocation', {unit: 'bytes'}).txt('0');
	volume.ele('target').ele('format', {type: format});
	if (backing !== undefined) {
		volume
			.ele('backingStore')
			.ele('path')
			.txt(xmlText('path', backing.path))
			.up()
			.ele('format', {type: backing.format});
	}

	return volume.end({headless: true, prettyPrint: true});
}

/** A directory pool that only its owner and QEMU can read. */
export function directoryPoolXml(name: string, path: string): string {
	const pool = create().ele('pool', {type: 'dir'});
	pool.ele('name').txt(xmlText('pool', name));
	pool.ele('target').ele('path').txt(xmlText('path', path));
	return pool.end({headless: true, prettyPrint: true});
}
