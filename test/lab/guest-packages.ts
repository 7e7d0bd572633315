/**
 * Fetches the s390x kernel and busybox of Debian with the apt sources and keys of this machine, but with a separate apt
 * root. So the architectures of dpkg and the lists and caches of apt do not change. Packages are only unpacked, not
 * installed.
 */
import {mkdir, readdir, readFile, rename, stat, writeFile} from 'node:fs/promises';
import {basename, join} from 'node:path';
import {AdaptorError, toError} from '../../src/core/errors.ts';
import {run} from './command.ts';
import type {StepReport} from './progress.ts';

/** The files from the packages that are part of the image, as paths. */
export interface GuestParts {
	/** The names and versions of the packages. */
	readonly name: string;
	readonly kernel: string;
	readonly busybox: string;
	/** In load order. */
	readonly modules: readonly string[];
}

export interface Steps {
	step<T>(title: string, work: (report: StepReport) => Promise<T>): Promise<T>;
}

/**
 * Each module after its dependencies. virtio, af_packet, the SCLP console and devtmpfs are built into the kernel of
 * Debian.
 */
const modules = [
	'virtio_blk',
	'failover',
	'net_failover',
	'virtio_net',
	'cdrom',
	'isofs',
	'udp_tunnel',
	'ip6_udp_tunnel',
	'vxlan',
	'veth',
];

/** The parts that an earlier run unpacked; undefined if there are none. */
export async function unpackedParts(cacheDir: string): Promise<GuestParts | undefined> {
	// The name is written last, when the directory is complete.
	const name = await readFile(join(cacheDir, 'parts'), 'utf8').catch(() => undefined);
	if (
		name === undefined ||
		!(await stat(join(cacheDir, name)).then(
			() => true,
			() => false,
		))
	) {
		return undefined;
	}

	const directory = join(cacheDir, name);
	return {
		name,
		kernel: join(directory, 'vmlinuz'),
		busybox: join(directory, 'busybox'),
		modules: modules.map(module => join(directory, `${module}.ko`)),
	};
}

/** @param scratch an empty directory on the file system of `cacheDir`; the caller removes it */
export async function fetchParts(
	cacheDir: string,
	scratch: string,
	steps: Steps,
	signal: AbortSignal,
): Promise<GuestParts> {
	const apt = new Apt(join(scratch, 'apt'), signal);
	const wanted = await steps.step("Look up Debian's s390x packages", async report => {
		await apt.update();
		const kernel = await apt.dependency('linux-image-s390x', /^linux-image-\d.*-s390x$/);
		report.note(kernel);
		return [kernel, 'busybox-static'];
	});
	const debs = await steps.step('Download them', async report => apt.download(wanted, report));
	const name = debs.map(deb => basename(deb, '.deb').replaceAll(/[^\w.+-]/g, '_')).join('_');
	await steps.step('Unpack kernel, modules and busybox', async () => {
		const unpacked = join(scratch, 'unpacked');
		await mkdir(unpacked);
		await Promise.all(debs.map(async deb => unpack(deb, unpacked, signal)));
		const parts = join(scratch, name);
		await mkdir(parts);
		await gather(unpacked, parts, signal);
		// A directory that is not named in `parts` is complete too, because it was created by the same rename.
		await rename(parts, join(cacheDir, name)).catch((error: unknown) => {
			if (!(error instanceof Error && 'code' in error && error.code === 'ENOTEMPTY')) {
				throw error;
			}
		});
		await writeFile(join(scratch, 'parts'), name);
		await rename(join(scratch, 'parts'), join(cacheDir, 'parts'));
	});
	const parts = await unpackedParts(cacheDir);
	if (parts === undefined) {
		throw new AdaptorError({code: 'internal', what: 'The unpacked packages have disappeared', where: {cacheDir}});
	}

	return parts;
}

async function unpack(deb: string, target: string, signal: AbortSignal): Promise<void> {
	const tar = await run('dpkg', ['--fsys-tarfile', deb], {}, signal);
	const members = ['./boot/vmlinuz-*', './bin/busybox', ...modules.map(module => `./lib/modules/*/${module}.ko*`)];
	// tar fails for patterns without a match, and each package has only some of these files. gather() detects missing
	// files.
	const listed = (await run('tar', ['-t'], {input: tar}, signal)).toString().split('\n');
	const patterns = members.filter(member => listed.some(path => glob(member).test(path)));
	await run('tar', ['-x', '-C', target, '--wildcards', ...patterns], {input: tar}, signal);
}

function glob(pattern: string): RegExp {
	return new RegExp(`^${pattern.replaceAll('.', '\\.').replaceAll('*', '.*')}$`);
}

/** Moves the unpacked files to the names that the image builder expects. */
async function gather(unpacked: string, target: string, signal: AbortSignal): Promise<void> {
	const files = (await readdir(unpacked, {recursive: true})).map(path => join(unpacked, path));
	const take = async (found: (name: string) => boolean, name: string): Promise<void> => {
		const file = files.find(path => found(basename(path)));
		if (file === undefined) {
			throw new AdaptorError({code: 'not-found', what: `The packages of Debian do not contain ${name}`});
		}

		// Debian 13 compresses modules.
		const content = file.endsWith('.xz') ? await run('xz', ['-dc', file], {}, signal) : await readFile(file);
		await writeFile(join(target, name), content);
	};
	await take(name => name.startsWith('vmlinuz-'), 'vmlinuz');
	await take(name => name === 'busybox', 'busybox');
	for (const module of modules) {
		await take(name => name === `${module}.ko` || name === `${module}.ko.xz`, `${module}.ko`);
	}
}

/** Fetches Debian packages for s390x. Does not know their purpose. */
export class Apt {
	readonly #root: string;
	readonly #signal: AbortSignal;
	readonly #options: readonly string[];
	/** The error of `update`. */
	#complaint: unknown;

	constructor(root: string, signal: AbortSignal) {
		this.#root = root;
		this.#signal = signal;
		const settings = {
			'APT::Architecture': 's390x',
			'APT::Architectures': 's390x',
			'APT::Sandbox::User': 'root', // It may write to this apt root.
			'Acquire::IndexTargets::deb::DEP-11::DefaultEnabled': 'false',
			'Acquire::Languages': 'none',
			'Acquire::Retries': '3',
			'Dir::Cache': join(root, 'cache'),
			'Dir::State': join(root, 'state'),
			'Dir::State::status': join(root, 'status'),
		};
		this.#options = [
			'-c',
			join(root, 'apt.conf'),
			'-q',
			...Object.entries(settings).flatMap(([name, value]) => ['-o', `${name}=${value}`]),
		];
	}

	/**
	 * A source without s390x packages, or one that does not answer, is no failure: it is enough that the packages are
	 * found.
	 */
	async update(): Promise<void> {
		await Promise.all(
			['cache/archives/partial', 'state/lists/partial', 'debs'].map(async path =>
				mkdir(join(this.#root, path), {recursive: true}),
			),
		);
		await writeFile(join(this.#root, 'status'), '');
		// Container images of Debian have hooks here that clear the caches of the machine.
		await writeFile(
			join(this.#root, 'apt.conf'),
			'#clear APT::Update::Post-Invoke;\n#clear APT::Update::Post-Invoke-Success;\n#clear DPkg::Post-Invoke;\n',
		);
		try {
			await this.#apt('apt-get', ['update']);
		} catch (error) {
			this.#signal.throwIfAborted();
			this.#complaint = error;
		}
	}

	async dependency(name: string, pattern: RegExp): Promise<string> {
		// apt-cache fails for an unknown package.
		const depends = (await this.#apt('apt-cache', ['depends', name]).catch(() => '')).toString();
		this.#signal.throwIfAborted();
		const found = depends.split(/\s+/).find(word => pattern.test(word));
		if (found === undefined) {
			throw new AdaptorError({
				code: 'not-found',
				what: `apt does not find ${name} for s390x${this.#complaint === undefined ? '' : `: ${toError(this.#complaint).message}`}`,
				remedy: 'The network must be up, and the sources in /etc/apt must name a Debian archive with s390x, e.g. http://deb.debian.org/debian bookworm main.',
				cause: this.#complaint,
			});
		}

		return found;
	}

	/** @returns the paths of the packages, in the order of their names */
	async download(names: readonly string[], report: StepReport): Promise<string[]> {
		// 'URI' file size hash
		const uris = (await this.#apt('apt-get', ['download', '--print-uris', ...names])).toString();
		const total = [...uris.matchAll(/^'[^']*' \S+ (\d+)/gm)].reduce((sum, [, size]) => sum + Number(size), 0);
		const onStatus = (line: string): void => {
			const percent = /^dlstatus:\d+:([\d.]+):/.exec(line)?.[1];
			if (percent !== undefined) {
				report.bytes((total * Number(percent)) / 100, total);
			}
		};
		await this.#apt('apt-get', ['-o', 'APT::Status-Fd=3', 'download', ...names], onStatus);
		const debs = (await readdir(join(this.#root, 'debs'))).filter(name => name.endsWith('.deb'));
		return debs.sort().map(name => join(this.#root, 'debs', name));
	}

	async #apt(program: string, args: readonly string[], onStatus?: (line: string) => void): Promise<Buffer> {
		const remedy =
			'Debian packages for s390x could not be fetched: check the network and the sources in /etc/apt, then run this again.';
		return run(
			program,
			[...args, ...this.#options],
			{cwd: join(this.#root, 'debs'), remedy, ...(onStatus === undefined ? {} : {onStatus})},
			this.#signal,
		);
	}
}
