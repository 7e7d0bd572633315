/**
 * A cpio archive in the "newc" format, which the kernel unpacks as its initial root file system. Pure. Source: Linux,
 * Documentation/driver-api/early-userspace/buffer-format.rst.
 */

export interface ArchiveEntry {
	/** Without a leading slash; a directory precedes its content. */
	readonly path: string;
	/** Type and permissions in the format of stat(2), e.g. `fileType.regular | 0o755`. */
	readonly mode: number;
	/** The content of a file, or the target of a symbolic link. */
	readonly content?: Uint8Array;
}

export const fileType = {directory: 0o04_0000, regular: 0o10_0000, symlink: 0o12_0000} as const;

export function newcArchive(entries: readonly ArchiveEntry[]): Buffer {
	return Buffer.concat([
		...entries.flatMap((entry, index) => record(entry, index + 1)),
		...record({path: 'TRAILER!!!', mode: 0}, 0),
	]);
}

/** Owner and time are 0, so that the same entries produce the same bytes. */
function record({path, mode, content = new Uint8Array()}: ArchiveEntry, inode: number): Buffer[] {
	const name = Buffer.from(`${path}\0`);
	const links = (mode & fileType.directory) === 0 ? 1 : 2;
	//              ino    mode  uid gid links  mtime size            dev  -  rdev -  name length  check
	const fields = [inode, mode, 0, 0, links, 0, content.length, 0, 0, 0, 0, name.length, 0];
	const header = Buffer.from(`070701${fields.map(field => field.toString(16).padStart(8, '0')).join('')}`);
	return [header, name, padding(header.length + name.length), Buffer.from(content), padding(content.length)];
}

function padding(length: number): Buffer {
	return Buffer.alloc((4 - (length % 4)) % 4);
}
