import {once} from 'node:events';
import {spawn} from 'node:child_process';
import {createInterface} from 'node:readline';
import {readFile} from 'node:fs/promises';
import {setTimeout as delay} from 'node:timers/promises';
import fc from 'fast-check';
import test from 'ava';
import {AdaptorError} from '../../src/core/errors.ts';
import {SpawnServer} from '../../src/network/spawn-server.ts';
import {directoryOf} from '../support/directory.ts';

const signal = (): AbortSignal => AbortSignal.timeout(100_000);

test('arguments and input reach the program as they are, whatever they contain', async t => {
	await using programs = new SpawnServer({size: 2});
	const word = fc.string({unit: 'binary'}).filter(value => !value.includes('\0') && value.isWellFormed());
	await fc.assert(
		fc.asyncProperty(fc.array(word, {maxLength: 5}), word, async (words, input) => {
			const printed = await programs.run({argv: ['printf', '[%s]\\n', ...words]}, signal());
			t.is(printed.stdout, words.length === 0 ? '[]\n' : words.map(value => `[${value}]\n`).join(''));
			const echoed = await programs.run({argv: ['cat'], stdin: input}, signal());
			t.is(echoed.stdout, input === '' || input.endsWith('\n') ? input : `${input}\n`);
		}),
		{
			numRuns: 150,
			examples: [[['$(id)', '`id`', "'; id #", '-n', '"', '\\', '\n', '*', '&& id'], "$(id)\nEOF\n'"]],
		},
	);
});

test('status and both outputs are returned separately; a missing program has status 127', async t => {
	await using programs = new SpawnServer({size: 1});
	t.deepEqual(await programs.run({argv: ['sh', '-c', 'printf out; printf err >&2; exit 7']}, signal()), {
		status: 7,
		stdout: 'out',
		stderr: 'err',
	});
	t.is((await programs.run({argv: ['no-such-program']}, signal())).status, 127);
	t.deepEqual(
		await programs.run({argv: ['true']}, signal()),
		{status: 0, stdout: '', stderr: ''},
		'the next is not touched by it',
	);
});

test('as many run at once as there are shells, the others wait their turn', async t => {
	await using programs = new SpawnServer({size: 3});
	const pids = await Promise.all(
		Array.from({length: 30}, async () => programs.run({argv: ['sh', '-c', 'echo $PPID']}, signal())),
	);
	t.true(new Set(pids.map(({stdout}) => stdout)).size <= 3);
	t.is(pids.length, 30);
});

test('an abort kills the command before the call rejects, and another shell replaces its shell', async t => {
	await using programs = new SpawnServer({size: 1});
	const abort = new AbortController();
	const directory = await directoryOf(t);
	const running = programs.run(
		{
			argv: [
				'sh',
				'-c',
				`echo $$ >${directory}/pid.new; mv ${directory}/pid.new ${directory}/pid; exec sleep 1000`,
			],
		},
		abort.signal,
	);
	const waiting = programs.run({argv: ['echo', 'next']}, signal());
	const pid = await appears(`${directory}/pid`);
	abort.abort(new AdaptorError({code: 'cancelled', what: 'stopped'}));
	await t.throwsAsync(running, {message: 'stopped'});
	t.throws(() => process.kill(Number(pid), 0), {code: 'ESRCH'});
	t.is((await waiting).stdout, 'next\n');
});

test('an abort kills the command even if its shell gets no CPU time', async t => {
	await using programs = new SpawnServer({size: 1});
	const abort = new AbortController();
	const directory = await directoryOf(t);
	const running = programs.run(
		{
			argv: [
				'sh',
				'-c',
				`kill -STOP $PPID; echo $$ >${directory}/pid.new; mv ${directory}/pid.new ${directory}/pid; exec sleep 1000`,
			],
		},
		abort.signal,
	);
	const pid = await appears(`${directory}/pid`);
	abort.abort(new AdaptorError({code: 'cancelled', what: 'stopped'}));
	await t.throwsAsync(running, {message: 'stopped'});
	await t.notThrowsAsync(gone(Number(pid)));
});

test('a command that takes too long is ended with an error that names it', async t => {
	await using programs = new SpawnServer({size: 1, timeoutMs: 100});
	const error = await t.throwsAsync<AdaptorError>(programs.run({argv: ['sleep', '60']}, signal()));
	t.is(error.code, 'deadline-exceeded');
	t.regex(error.message, /"sleep 60"/v);
});

test('a waiting call can be aborted, and an aborted signal starts nothing', async t => {
	await using programs = new SpawnServer({size: 1});
	const abort = new AbortController();
	const first = programs.run({argv: ['sleep', '0.2']}, signal());
	const second = programs.run({argv: ['false']}, abort.signal);
	abort.abort(new Error('enough'));
	await t.throwsAsync(second, {message: 'enough'});
	await t.throwsAsync(programs.run({argv: ['true']}, abort.signal), {message: 'enough'});
	t.is((await first).status, 0);
});

test('a command with endless output is killed', async t => {
	await using programs = new SpawnServer({size: 1, maxOutput: 10_000});
	const error = await t.throwsAsync<AdaptorError>(programs.run({argv: ['yes']}, signal()));
	t.is(error.code, 'resource-exhausted');
	t.is((await programs.run({argv: ['seq', '1000']}, signal())).stdout.length, 3893, 'less is passed on whole');
});

test('a shell that dies fails its command, and the next command has a new one', async t => {
	await using programs = new SpawnServer({size: 1});
	const error = await t.throwsAsync<AdaptorError>(
		programs.run({argv: ['sh', '-c', 'kill -KILL $PPID; exec sleep 1']}, signal()),
	);
	t.is(error.code, 'unavailable');
	t.is((await programs.run({argv: ['echo', 'alive']}, signal())).stdout, 'alive\n');
});

test('without a shell every command fails, and disposing works', async t => {
	await using programs = new SpawnServer({shell: ['/no/such/shell'], size: 2});
	await t.throwsAsync(programs.run({argv: ['true']}, signal()), {message: /shell that runs commands ended/v});
});

test('disposing lets accepted commands finish and leaves no shell', async t => {
	const programs = new SpawnServer({size: 1});
	const {stdout: pid} = await programs.run({argv: ['sh', '-c', 'echo $PPID']}, signal());
	const results = Promise.all([1, 2, 3].map(async n => programs.run({argv: ['echo', String(n)]}, signal())));
	await programs[Symbol.asyncDispose]();
	await programs[Symbol.asyncDispose]();
	t.deepEqual(
		(await results).map(({stdout}) => stdout),
		['1\n', '2\n', '3\n'],
	);
	t.throws(() => process.kill(Number(pid), 0), {code: 'ESRCH'});
	await t.throwsAsync(programs.run({argv: ['true']}, signal()), {message: /shutting down/v});
});

test('shells end with the process that started them, even when it is killed', async t => {
	const program = `
		import {SpawnServer} from ${JSON.stringify(new URL('../../src/network/spawn-server.ts', import.meta.url))};
		const programs = new SpawnServer({size: 2});
		const pids = await Promise.all([1, 2].map(() => programs.run({argv: ['sh', '-c', 'sleep 0.1; echo $PPID']}, AbortSignal.timeout(100_000))));
		console.log(pids.map(({stdout}) => stdout.trim()).join(' '));
		setInterval(() => {}, 1000);`;
	const child = spawn(process.execPath, ['--input-type=module', '-e', program], {
		stdio: ['ignore', 'pipe', 'inherit'],
	});
	const [line] = (await once(createInterface(child.stdout), 'line')) as [string];
	child.kill('SIGKILL');
	await once(child, 'exit');
	const pids = line.split(' ').map(Number);
	t.is(new Set(pids).size, 2);
	for (const pid of pids) {
		await gone(pid);
		t.pass();
	}
});

/** Neither file nor process tells when: looked at until it is so. */
async function appears(path: string): Promise<string> {
	let content: string | undefined;
	await until(`no ${path} appeared`, async () => {
		content = await readFile(path, 'utf8').catch(() => undefined);
		return content !== undefined;
	});
	return content ?? '';
}

async function gone(pid: number): Promise<void> {
	await until(`process ${pid} is still there`, async () => {
		const state = await readFile(`/proc/${pid}/stat`, 'utf8').catch(() => 'gone');
		return state === 'gone' || state.includes(') Z ');
	});
}

async function until(complaint: string, isSo: () => Promise<boolean>): Promise<void> {
	const giveUpAt = performance.now() + 60_000;
	while (!(await isSo())) {
		if (performance.now() > giveUpAt) {
			throw new Error(complaint);
		}

		await delay(5);
	}
}
