/**
 * Names of the versions of a pod VM image. The configured name (LIBVIRT_VOL_NAME) is an alias that points to a version:
 * `podvm-base.qcow2` to `podvm-base-20261123T040255Z.qcow2`. Does not know how aliases are stored on the host.
 */

export interface ImageVersion {
	/** The common part of the alias and its versions: `podvm-base`. */
	readonly stem: string;
	readonly madeAt: Date;
}

const extension = /\.(?:qcow2|raw|img)$/v;
const version = /^(.+)-(\d{4})(\d{2})(\d{2})T(\d{2})(\d{2})(\d{2})Z\.(?:qcow2|raw)$/v;

/** The common part of an alias and its versions. The name of a version has the same stem. */
export function imageStem(name: string): string {
	return readImageVersion(name)?.stem ?? name.replace(extension, '');
}

/** @param madeAt without milliseconds: versions of one image are at least a second apart */
export function imageVersionName(stem: string, madeAt: Date, format: 'qcow2' | 'raw'): string {
	return `${stem}-${madeAt.toISOString().replaceAll(/[\-:]|\.\d+/gv, '')}.${format}`;
}

/** Undefined if the name is not that of a version. */
export function readImageVersion(name: string): ImageVersion | undefined {
	const [, stem, year, month, day, hour, minute, second] = version.exec(name) ?? [];
	const madeAt = new Date(`${year}-${month}-${day}T${hour}:${minute}:${second}Z`);
	return stem === undefined || Number.isNaN(madeAt.getTime()) ? undefined : {stem, madeAt};
}

/**
 * Whether the volume at `path` is an alias: its backing file is in the same directory and is one of its versions.
 * VMs always use the version itself, never the alias, so the alias can point to another version at any time.
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
