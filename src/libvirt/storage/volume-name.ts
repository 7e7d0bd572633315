/** Identifies a volume in calls. */
import type {StorageVol} from '../wire/procedures.ts';

/** libvirt finds a volume by pool name and volume name; the key is only for libvirt itself. */
export function volumeOf(pool: string, name: string): StorageVol {
	return {pool, name, key: ''};
}
