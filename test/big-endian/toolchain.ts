/**
 * Node.js for s390x, emulated instruction by instruction: the only way to see our code on a big-endian machine without
 * having one. The newest build that a registry holds is 20.11, with Debian's libraries beside it. Nothing is installed:
 * both are unpacked into the cache.
 */
import {createHash} from 'node:crypto';
import {mkdir, mkdtemp, readdir, readFile, rename, rm, stat} from 'node:fs/promises';
import {join} from 'node:path';
import {AdaptorError} from '../../src/core/errors.ts';
import {run} from '../lab/command.ts';
import {Apt} from '../lab/guest-packages.ts';

const version = '20.11.0';
/** As in a lockfile: the package holds a program that we run. */
const integrity = 'sha512-00F88i+9jVexpzxYBDrY+xXqeyU3XW1JhyoxGqSbnUbmcOzvYzSSjVxaQLdGHNtavZywN24058sjCq0rVMHzZw==';
/** What that program is linked with. */
const libraries = ['libc6', 'libgcc-s1', 'libstdc++6', 'libatomic1'];

const emulator = 'qemu-s390x-static';
const scratchPrefix = 'tmp-';
/** A run that takes longer is dead. */
const maxScratchAgeMs = 3_600_000;

/**
 * Resolves with the program and its first arguments, to be followed by Node's own. Fetches what is missing, which takes
 * a few seconds.
 * @throws AdaptorError with a remedy when it cannot be had
 */
export async function s390xNode(cacheDir: string, signal: AbortSignal): Promise<readonly string[]> {
	await run(
		emulator,
		['--version'],
		{remedy: 'The Debian package qemu-user-static provides it: run test/lab/setup.sh.'},
		signal,
	);
	const home = join(cacheDir, `node-${version}-s390x`);
	if (
		!(await stat(home).then(
			() => true,
			() => false,
		))
	) {
		await mkdir(cacheDir, {recursive: true});
		await removeLeftovers(cacheDir);
		const scratch = await mkdtemp(join(cacheDir, scratchPrefix));
		try {
			const unpacked = join(scratch, 'unpacked');
			await mkdir(unpacked);
			await Promise.all([unpackNode(scratch, unpacked, signal), unpackLibraries(scratch, unpacked, signal)]);
			await rename(unpacked, home).catch((error: unknown) => {
				// Another run was faster.
				if (!(error instanceof Error && 'code' in error && error.code === 'ENOTEMPTY')) {
					throw error;
				}
			});
		} finally {
			await rm(scratch, {recursive: true, force: true});
		}
	}

	return [emulator, '-L', join(home, 'root'), join(home, 'package/bin/node')];
}

async function unpackNode(scratch: string, target: string, signal: AbortSignal): Promise<void> {
	const remedy =
		"The npm package node-linux-s390x could not be fetched: check the network and npm's registry, then run this again.";
	await run(
		'npm',
		['pack', `node-linux-s390x@${version}`, '--loglevel=error', `--pack-destination=${scratch}`],
		{cwd: scratch, remedy},
		signal,
	);
	const archive = await readFile(join(scratch, `node-linux-s390x-${version}.tgz`));
	const found = `sha512-${createHash('sha512').update(archive).digest('base64')}`;
	if (found !== integrity) {
		throw new AdaptorError({
			code: 'data-loss',
			what: 'The npm package node-linux-s390x is not the one that it was',
			where: {version, found, integrity},
		});
	}

	await run('tar', ['-xz', '-C', target, 'package/bin/node'], {input: archive}, signal);
}

async function unpackLibraries(scratch: string, target: string, signal: AbortSignal): Promise<void> {
	const apt = new Apt(join(scratch, 'apt'), signal);
	await apt.update();
	for (const deb of await apt.download(libraries, {bytes: () => undefined, note: () => undefined})) {
		await run('dpkg', ['-x', deb, join(target, 'root')], {}, signal);
	}
}

/** Of runs that were killed. */
async function removeLeftovers(cacheDir: string): Promise<void> {
	for (const path of (await readdir(cacheDir))
		.filter(name => name.startsWith(scratchPrefix))
		.map(name => join(cacheDir, name))) {
		if (Date.now() - (await stat(path)).mtimeMs > maxScratchAgeMs) {
			await rm(path, {recursive: true, force: true});
		}
	}
}
