import {spawn, type ChildProcess} from 'node:child_process';
import {once} from 'node:events';
import {readdir, utimes, writeFile} from 'node:fs/promises';
import {createInterface} from 'node:readline';
import {fileURLToPath} from 'node:url';
import test, {type ExecutionContext} from 'ava';
import {lockPodsDir} from '../../src/journal/daemon-lock.ts';
import {silentLogger} from '../../src/core/log.ts';
import {directoryOf} from '../support/directory.ts';

const never = new AbortController().signal;
const program = fileURLToPath(new URL('lock-holder.ts', import.meta.url));

interface Holder {
	readonly process: ChildProcess;
	readonly hasPredecessor: boolean;
	readonly hasSuccessor: boolean;
	/** What it logged as an error. */
	readonly errors: readonly string[];
}

/** Another daemon, which is at work when this resolves. */
async function another(
	t: ExecutionContext,
	podsDir: string,
	[command = process.execPath, ...wrapping]: readonly string[] = [],
): Promise<Holder> {
	const child = spawn(
		command,
		[...wrapping, ...(wrapping.length === 0 ? [] : [process.execPath]), program, podsDir],
		{stdio: ['pipe', 'pipe', 'inherit']},
	);
	t.teardown(() => child.kill('SIGKILL'));
	const [line] = (await once(createInterface(child.stdout), 'line')) as [string];
	return {process: child, ...(JSON.parse(line) as Omit<Holder, 'process'>)};
}

async function killed({process: child}: Holder): Promise<void> {
	child.kill('SIGKILL');
	await once(child, 'exit');
}

test('a single daemon finds no other daemons, and leaves no file when it ends', async t => {
	const podsDir = await directoryOf(t);
	const lock = await lockPodsDir(podsDir, silentLogger);
	t.false(lock.hasPredecessor());
	t.false(await lock.hasSuccessor());
	await lock.predecessorsEnded(never);
	t.deepEqual(await readdir(podsDir), ['.daemon-1']);
	await lock[Symbol.asyncDispose]();
	t.deepEqual(await readdir(podsDir), []);
});

test('a live predecessor is seen until the kernel releases its lock, however it ends', async t => {
	const podsDir = await directoryOf(t);
	for (const end of ['SIGKILL', 'SIGTERM', 'in good order'] as const) {
		const predecessor = await another(t, podsDir);
		await using lock = await lockPodsDir(podsDir, silentLogger);
		t.true(lock.hasPredecessor());
		t.false(await lock.hasSuccessor());
		if (end === 'in good order') {
			predecessor.process.stdin?.end();
		} else {
			predecessor.process.kill(end);
		}

		await lock.predecessorsEnded(never);
		t.false(lock.hasPredecessor());
	}
});

test('a daemon that took over and died does not hide a live predecessor', async t => {
	const podsDir = await directoryOf(t);
	const first = await another(t, podsDir);
	const second = await another(t, podsDir);
	t.deepEqual([first.hasPredecessor, second.hasPredecessor], [false, true]);
	await killed(second);
	await using third = await lockPodsDir(podsDir, silentLogger);
	t.true(third.hasPredecessor());
	await killed(first);
	await third.predecessorsEnded(never);
});

test('a successor is seen while it lives', async t => {
	const podsDir = await directoryOf(t);
	await using lock = await lockPodsDir(podsDir, silentLogger);
	const successor = await another(t, podsDir);
	t.true(successor.hasPredecessor);
	t.true(await lock.hasSuccessor());
	t.false(lock.hasPredecessor());
	await killed(successor);
	t.false(await lock.hasSuccessor());
});

test('if ten daemons start at once, each finds its live predecessors, and stale files are removed', async t => {
	const podsDir = await directoryOf(t);
	const locks = await Promise.all(Array.from({length: 10}, async () => lockPodsDir(podsDir, silentLogger)));
	t.is((await readdir(podsDir)).filter(name => name.startsWith('.daemon-')).length, 10);
	t.is(locks.filter(lock => !lock.hasPredecessor()).length, 1);
	await Promise.all(locks.map(async lock => lock[Symbol.asyncDispose]()));
	const dead = await another(t, podsDir);
	await killed(dead);
	await using _lock = await lockPodsDir(podsDir, silentLogger);
	t.deepEqual(await readdir(podsDir), ['.daemon-2']);
});

test('the draft file of a daemon that died before it got its number is removed a minute later', async t => {
	const podsDir = await directoryOf(t);
	await writeFile(`${podsDir}/.daemon-new-00c0ffee`, '');
	await writeFile(`${podsDir}/.daemon-new-12345678`, '');
	await utimes(`${podsDir}/.daemon-new-00c0ffee`, new Date(0), new Date(0));
	await using _lock = await lockPodsDir(podsDir, silentLogger);
	t.deepEqual((await readdir(podsDir)).sort(), ['.daemon-1', '.daemon-new-12345678']);
});

test('if PODS_DIR is not writable, this is logged, and live predecessors are still found', async t => {
	const podsDir = await directoryOf(t);
	await another(t, podsDir);
	const blind = await another(t, podsDir, [
		'unshare',
		'--mount',
		'sh',
		'-c',
		'mount --bind "$2" "$2" && mount -o remount,ro,bind "$2" && exec "$0" "$@"',
	]);
	t.true(blind.hasPredecessor);
	t.false(blind.hasSuccessor);
	t.deepEqual(blind.errors, ['could not create a lock file in PODS_DIR; a successor will not detect this daemon']);
});
