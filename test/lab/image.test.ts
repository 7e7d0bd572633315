import test from 'ava';
import {mkdir, mkdtemp, readdir, readFile, rm, symlink, utimes, writeFile} from 'node:fs/promises';
import {tmpdir} from 'node:os';
import {basename, join} from 'node:path';
import {fileURLToPath} from 'node:url';
import {AdaptorError} from '../../src/core/errors.ts';
import {run} from './command.ts';
import type {Steps} from './guest-packages.ts';
import {buildGuestImage} from './image.ts';

const signal = AbortSignal.timeout(600_000);
const shared = fileURLToPath(new URL('../../.cache/lab', import.meta.url));

/** A separate cache that already contains the packages and the build cache of Go. */
async function warmCache(): Promise<string> {
	await buildGuestImage({cacheDir: shared}, signal);
	const cache = await mkdtemp(join(tmpdir(), 'caat-image-'));
	const parts = await readFile(join(shared, 'parts'), 'utf8');
	await Promise.all([
		writeFile(join(cache, 'parts'), parts),
		symlink(join(shared, parts), join(cache, parts)),
		symlink(join(shared, 'go'), join(cache, 'go')),
	]);
	return cache;
}

const images = async (cache: string): Promise<string[]> =>
	(await readdir(cache)).filter(name => /^guest-|^tmp-/.test(name)).sort();

test('a second build does nothing; another recipe makes another image', async t => {
	const cacheDir = await warmCache();
	t.teardown(async () => rm(cacheDir, {recursive: true}));
	const titles: string[] = [];
	const steps: Steps = {
		step: async (title, work) => {
			titles.push(title);
			return work({bytes: () => undefined, note: () => undefined});
		},
	};
	const first = await buildGuestImage({cacheDir, steps}, signal);
	t.deepEqual(titles, ['Compile the guest agent for s390x', 'Make the boot disk']);
	t.is(await buildGuestImage({cacheDir, steps}, signal), first);
	t.is(titles.length, 2);
	t.not(await buildGuestImage({cacheDir, bootOptions: ['caa.lab=slow']}, signal), first);
	t.not(await buildGuestImage({cacheDir, files: {'/etc/certificates/ca.crt': ''}}, signal), first);
	t.is((await images(cacheDir)).length, 3);
	const {format} = JSON.parse((await run('qemu-img', ['info', '--output=json', first], {}, signal)).toString()) as {
		format: string;
	};
	t.is(format, 'qcow2');
});

test('the most recently used images are kept', async t => {
	const cacheDir = await warmCache();
	t.teardown(async () => rm(cacheDir, {recursive: true}));
	const first = await buildGuestImage({cacheDir}, signal);
	const old = Array.from({length: 15}, (_, index) =>
		join(cacheDir, `guest-${String(index).padStart(16, '0')}.qcow2`),
	);
	for (const [index, path] of old.entries()) {
		await writeFile(path, '');
		await utimes(path, index, index);
	}

	const next = await buildGuestImage({cacheDir, bootOptions: ['caa.lab=slow']}, signal);
	t.deepEqual(await images(cacheDir), [...old.slice(5), first, next].map(path => basename(path)).sort());
});

test('two builds at once end with one image', async t => {
	const cacheDir = await warmCache();
	t.teardown(async () => rm(cacheDir, {recursive: true}));
	const [one, other] = await Promise.all([buildGuestImage({cacheDir}, signal), buildGuestImage({cacheDir}, signal)]);
	t.is(one, other);
	t.is((await images(cacheDir)).length, 1);
});

test('an aborted build, or the scratch directory of a crashed one, does not block the next build', async t => {
	const cacheDir = await warmCache();
	t.teardown(async () => rm(cacheDir, {recursive: true}));
	await mkdir(join(cacheDir, 'tmp-of-a-killed-run', 'apt'), {recursive: true});
	for (const at of ['Compile the guest agent for s390x', 'Make the boot disk']) {
		const controller = new AbortController();
		const steps: Steps = {
			step: async (title, work) => {
				const running = work({bytes: () => undefined, note: () => undefined});
				if (title === at) {
					controller.abort(new Error('enough'));
				}

				return running;
			},
		};
		await t.throwsAsync(buildGuestImage({cacheDir, steps}, controller.signal), {message: 'enough'});
		t.deepEqual(await images(cacheDir), [], at);
	}

	await buildGuestImage({cacheDir}, signal);
	t.is((await images(cacheDir)).length, 1);
});

test('a program that is missing or fails is named, with what it said', async t => {
	await t.throwsAsync(run('no-such-program', ['x'], {remedy: 'Install it.'}, signal), {
		instanceOf: AdaptorError,
		message: /no-such-program x: could not be started.*Install it\./,
	});
	await t.throwsAsync(run('sh', ['-c', 'echo the reason >&2; exit 3'], {}, signal), {
		instanceOf: AdaptorError,
		message: /sh -c: the reason/,
	});
});
