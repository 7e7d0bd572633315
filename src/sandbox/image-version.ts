/**
 * How versions of a pod VM image are named. The name that is configured (LIBVIRT_VOL_NAME) points to one of its
 * versions: `podvm-base.qcow2` for `podvm-base-20261123T040255Z.qcow2`. Whoever makes versions and whoever starts VMs
 * on them agree here; what a name is on the host is theirs.
 */

export interface ImageVersion {
	/** Of the name that it is a version of: `podvm-base`. */
	readonly stem: string;
	readonly madeAt: Date;
}

const extension = /\.(?:qcow2|raw|img)$/v;
const version = /^(.+)-(\d{4})(\d{2})(\d{2})T(\d{2})(\d{2})(\d{2})Z\.(?:qcow2|raw)$/v;

/** What a name has in common with its versions; a version's own name has its stem. */
export function imageStem(name: string): string {
	return readImageVersion(name)?.stem ?? name.replace(extension, '');
}

/** @param madeAt whose milliseconds do not count: versions of one image are at least a second apart */
export function imageVersionName(stem: string, madeAt: Date, format: 'qcow2' | 'raw'): string {
	return `${stem}-${madeAt.toISOString().replaceAll(/[\-:]|\.\d+/gv, '')}.${format}`;
}

/** Undefined for a name that is no version's. */
export function readImageVersion(name: string): ImageVersion | undefined {
	const [, stem, year, month, day, hour, minute, second] = version.exec(name) ?? [];
	const madeAt = new Date(`${year}-${month}-${day}T${hour}:${minute}:${second}Z`);
	return stem === undefined || Number.isNaN(madeAt.getTime()) ? undefined : {stem, madeAt};
}

/**
 * Whether the volume at `path` is an alias of the one that it reads through to: both in one directory, the latter a
 * version of the former. Whoever needs the image takes the version, so that nothing ever stands on the name and it can
 * be given to another version at any time.
 */
export function pointsToVersion(path: string, backingPath: string): boolean {
	const [directory, name] = split(path);
	const [backingDirectory, backingName] = split(backingPath);
	return (
		directory === backingDirectory &&
		readImageVersion(name) === undefined &&
		readImageVersion(backingName)?.stem === imageStem(name)
	);
}

function split(path: string): readonly [directory: string, name: string] {
	const at = path.lastIndexOf('/');
	return [path.slice(0, at), path.slice(at + 1)];
}
