/**
 * Builds the guest image of the lab: the s390x kernel and busybox of Debian, and the agent of this project as /init, in
 * one bootable qcow2 file. The name of the result in the cache depends on all inputs. A run that dies leaves only
 * `tmp-…` directories, which the next run removes.
 */
import {spawn} from 'node:child_process';
import {createHash} from 'node:crypto';
import {once} from 'node:events';
import {mkdir, mkdtemp, readdir, readFile, rename, rm, stat, utimes, writeFile} from 'node:fs/promises';
import {basename, join, resolve} from 'node:path';
import {fileURLToPath} from 'node:url';
import {AdaptorError, toError} from '../../src/core/errors.ts';
import {run} from './command.ts';
import {fetchParts, unpackedParts, type GuestParts, type Steps} from './guest-packages.ts';
import {fileType, newcArchive, type ArchiveEntry} from './newc.ts';
import {ziplDisk} from './zipl.ts';

export interface GuestImageOptions {
	/** The cache directory; created if necessary. By default in the repository. */
	readonly cacheDir?: string;
	/** Shows the progress, for example a `Progress`. Absent: no output. */
	readonly steps?: Steps;
	/** Parameters for the kernel command line, e.g. `caa.lab=slow` (guest/README.md). */
	readonly bootOptions?: readonly string[];
	/** Additional files of the image by absolute path, e.g. `/etc/certificates/tls.crt`. */
	readonly files?: Readonly<Record<string, string>>;
}

type Recipe = Required<Pick<GuestImageOptions, 'bootOptions' | 'files'>>;

const sharedCache = fileURLToPath(new URL('../../.cache/lab', import.meta.url));
const guestDirectory = fileURLToPath(new URL('guest/', import.meta.url));
const builders = ['image.ts', 'zipl.ts', 'newc.ts'].map(name => fileURLToPath(new URL(name, import.meta.url)));
const go = '/usr/lib/go/bin/go';
/** Twice the number that all tests use together. */
const keptImages = 12;

/** The applets of busybox-static that tests and developers use. */
const applets = [
	'[',
	'awk',
	'base64',
	'cat',
	'chmod',
	'cp',
	'cut',
	'date',
	'dd',
	'df',
	'dmesg',
	'echo',
	'env',
	'false',
	'find',
	'free',
	'grep',
	'head',
	'hostname',
	'id',
	'ip',
	'kill',
	'ls',
	'md5sum',
	'mkdir',
	'mount',
	'mv',
	'nc',
	'ping',
	'printf',
	'ps',
	'pwd',
	'rm',
	'sed',
	'seq',
	'sh',
	'sha256sum',
	'sleep',
	'sort',
	'stat',
	'stty',
	'tail',
	'tee',
	'test',
	'touch',
	'tr',
	'true',
	'tty',
	'uname',
	'uptime',
	'vi',
	'wc',
	'wget',
	'xargs',
	'yes',
];

/**
 * Resolves with the path of a qcow2 file, at once if nothing has changed since the last build. Several processes may
 * call it concurrently.
 * @throws AdaptorError with a remedy if packages or tools are missing
 */
export async function buildGuestImage(
	{cacheDir = sharedCache, steps = silent, bootOptions = [], files = {}}: GuestImageOptions,
	signal: AbortSignal,
): Promise<string> {
	const cache = resolve(cacheDir);
	const recipe: Recipe = {bootOptions, files};
	const known = await unpackedParts(cache);
	const built = known === undefined ? undefined : await imagePath(cache, known, recipe);
	if (built !== undefined && (await isUsed(built))) {
		return built;
	}

	await mkdir(cache, {recursive: true});
	await using _lock = await exclusively(join(cache, 'lock'), signal);
	await removeLeftovers(cache);
	const scratch = await mkdtemp(join(cache, 'tmp-'));
	try {
		const parts = (await unpackedParts(cache)) ?? (await fetchParts(cache, scratch, steps, signal));
		const path = await imagePath(cache, parts, recipe);
		if (!(await isUsed(path))) {
			await rename(await build(parts, recipe, {cache, scratch, steps}, signal), path);
			await removeOldImages(cache);
		}

		return path;
	} finally {
		// Child processes of a killed go may still be writing.
		await rm(scratch, {recursive: true, force: true, maxRetries: 5});
	}
}

const silent: Steps = {step: async (_title, work) => work({bytes: () => undefined, note: () => undefined})};

async function imagePath(cache: string, parts: GuestParts, recipe: Recipe): Promise<string> {
	const hash = createHash('sha256').update(JSON.stringify([parts.name, recipe]));
	const sources = (await readdir(guestDirectory))
		.filter(name => /(?<!_test)\.go$|^go\.mod$/.test(name))
		.sort()
		.map(name => join(guestDirectory, name));
	for (const source of [...sources, ...builders]) {
		hash.update(`\0${basename(source)}\0`).update(await readFile(source));
	}

	return join(cache, `guest-${hash.digest('hex').slice(0, 16)}.qcow2`);
}

async function build(
	parts: GuestParts,
	{bootOptions, files}: Recipe,
	{cache, scratch, steps}: {cache: string; scratch: string; steps: Steps},
	signal: AbortSignal,
): Promise<string> {
	const agent = join(scratch, 'init');
	await steps.step('Compile the guest agent for s390x', async () => {
		const env = {
			PATH: process.env['PATH'],
			HOME: scratch,
			GOCACHE: join(cache, 'go'),
			GOPROXY: 'off',
			GOFLAGS: '',
			GOTOOLCHAIN: 'local',
			CGO_ENABLED: '0',
			GOOS: 'linux',
			GOARCH: 's390x',
			GOTMPDIR: scratch, // A killed go leaves its files there.
		};
		const args = ['build', '-trimpath', '-buildvcs=false', '-ldflags=-s -w', '-o', agent, '.'];
		await run(
			go,
			args,
			{cwd: guestDirectory, env, remedy: 'The Debian package golang-go provides it: run test/lab/setup.sh.'},
			signal,
		);
	});
	return steps.step('Make the boot disk', async report => {
		const archive = newcArchive(await rootFiles(parts, agent, files));
		// The kernel only supports the legacy format of lz4. Smaller formats take longer to unpack in the guest.
		const initramfs = await run(
			'lz4',
			['-l', '-9', '-c'],
			{input: archive, remedy: 'The Debian package lz4 provides it: run test/lab/setup.sh.'},
			signal,
		);
		// `quiet`: the console is slow. `cryptomgr.notests`: 0.3 to 0.5 s of self-tests under emulation.
		const commandLine = ['console=ttysclp0', 'quiet', 'cryptomgr.notests', ...bootOptions].join(' ');
		const raw = join(scratch, 'guest.raw');
		await writeFile(raw, ziplDisk({kernel: await readFile(parts.kernel), initramfs, commandLine}));
		const image = join(scratch, 'guest.qcow2');
		await run(
			'qemu-img',
			['convert', '-f', 'raw', '-O', 'qcow2', raw, image],
			{remedy: 'The Debian package qemu-utils provides it: run test/lab/setup.sh.'},
			signal,
		);
		report.note(`${((await stat(image)).size / 1_048_576).toFixed(1)} MiB`);
		return image;
	});
}

async function rootFiles(
	parts: GuestParts,
	agent: string,
	files: Readonly<Record<string, string>>,
): Promise<ArchiveEntry[]> {
	const program = fileType.regular | 0o755;
	const plain = fileType.regular | 0o644;
	const contents: ArchiveEntry[] = [
		{path: 'init', mode: program, content: await readFile(agent)},
		{path: 'bin/busybox', mode: program, content: await readFile(parts.busybox)},
		...applets.map(name => ({
			path: `bin/${name}`,
			mode: fileType.symlink | 0o777,
			content: Buffer.from('busybox'),
		})),
		// The process of the first container of a pod, as in any pause image: it sleeps until it is terminated.
		{
			path: 'pause',
			mode: program,
			content: Buffer.from('#!/bin/sh\ntrap "exit 0" TERM INT\nsleep 2147483647 & wait\n'),
		},
		{
			path: 'etc/passwd',
			mode: plain,
			content: Buffer.from('root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n'),
		},
		{path: 'etc/group', mode: plain, content: Buffer.from('root:x:0:\nnogroup:x:65534:\n')},
		{path: 'etc/hosts', mode: plain, content: Buffer.from('127.0.0.1 localhost\n')},
		// The agent loads them in the order of their file names.
		...(await Promise.all(
			parts.modules.map(async (module, index) => ({
				path: `lib/modules/${String(index).padStart(2, '0')}-${basename(module)}`,
				mode: plain,
				content: await readFile(module),
			})),
		)),
		...Object.entries(files).map(([path, content]) => ({
			path: path.slice(1),
			mode: fileType.regular | 0o600,
			content: Buffer.from(content),
		})),
	];
	const directories = new Set(['root', ...contents.flatMap(({path}) => parents(path))]);
	return [...[...directories].sort().map(path => ({path, mode: fileType.directory | 0o755})), ...contents];
}

function parents(path: string): string[] {
	const names = path.split('/').slice(0, -1);
	return names.map((_name, index) => names.slice(0, index + 1).join('/'));
}

/** Removes the scratch directories of dead runs. Only the owner of the lock creates such directories. */
async function removeLeftovers(cache: string): Promise<void> {
	const leftovers = (await readdir(cache)).filter(name => name.startsWith('tmp-'));
	// Child processes of the dead run may still be writing.
	await Promise.all(
		leftovers.map(async name => rm(join(cache, name), {recursive: true, force: true, maxRetries: 5})),
	);
}

/**
 * Removes all images except the last used ones, because each change of the sources of the agent creates new images.
 * Only the owner of the lock removes images.
 */
async function removeOldImages(cache: string): Promise<void> {
	const images = (await readdir(cache))
		.filter(name => /^guest-[\da-f]{16}\.qcow2$/v.test(name))
		.map(name => join(cache, name));
	const aged = await Promise.all(images.map(async path => ({path, usedMs: (await stat(path)).mtimeMs})));
	await Promise.all(
		aged
			.toSorted((one, other) => other.usedMs - one.usedMs)
			.slice(keptImages)
			.map(async ({path}) => rm(path, {force: true})),
	);
}

/** Whether the image exists; marks it as used. */
async function isUsed(path: string): Promise<boolean> {
	const now = new Date();
	return utimes(path, now, now).then(
		() => true,
		() => false,
	);
}

/**
 * Takes a lock that the kernel releases when this process dies, because the holder reads from a pipe of this process.
 */
async function exclusively(path: string, signal: AbortSignal): Promise<AsyncDisposable> {
	const holder = spawn('flock', ['--no-fork', path, 'sh', '-c', 'echo locked; exec cat >/dev/null'], {
		stdio: ['pipe', 'pipe', 'inherit'],
		signal,
	});
	const ended = once(holder, 'close').then(([code]) => new Error(`flock ended with ${String(code)}`), toError);
	const locked = once(holder.stdout, 'data').then(() => undefined);
	const failure = await Promise.race([locked, ended]);
	if (failure !== undefined) {
		signal.throwIfAborted();
		throw new AdaptorError({
			code: 'failed-precondition',
			what: `Could not lock the image cache: ${failure.message}`,
			where: {path},
			cause: failure,
		});
	}

	return {
		[Symbol.asyncDispose]: async () => {
			holder.stdin.end();
			await ended;
		},
	};
}
