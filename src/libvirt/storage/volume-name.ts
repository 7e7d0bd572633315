/** How calls name a volume. */
import type {StorageVol} from '../wire/procedures.ts';

/** libvirt finds a volume by the names of its pool and itself; the key is for its own use. */
export function volumeOf(pool: string, name: string): StorageVol {
	return {pool, name, key: ''};
}
