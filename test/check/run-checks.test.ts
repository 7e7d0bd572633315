import test from 'ava';
import type {Finding} from '../../src/check/finding.ts';
import {runChecks, type Check, type CheckResult, type RunOptions} from '../../src/check/run-checks.ts';
import {AdaptorError} from '../../src/core/errors.ts';

const never = new AbortController().signal;
const ok: Finding = {status: 'ok', text: 'well'};
const check = (name: string, run: Check['run'] = async () => ok, more: Partial<Check> = {}): Check => ({
	name,
	subject: 'node',
	run,
	...more,
});
const forever = async (): Promise<never> => new Promise(() => undefined);

async function results(list: readonly Check[], options: RunOptions = {}): Promise<CheckResult[]> {
	const all: CheckResult[] = [];
	for await (const result of runChecks(list, options, never)) {
		all.push(result);
	}

	return all;
}

const shown = (all: readonly CheckResult[]): string[] => all.map(({name, status, text}) => `${name} ${status} ${text}`);

test('checks run in parallel and are reported in the order of the list', async t => {
	const second = Promise.withResolvers<Finding>();
	const list = [
		check('first', async () => second.promise.then(() => ok)),
		check('second', async () => {
			second.resolve(ok);
			return second.promise;
		}),
	];
	t.deepEqual(shown(await results(list)), ['first ok well', 'second ok well']);
});

test('a finding is reported before later checks have ended', async t => {
	const late = Promise.withResolvers<Finding>();
	const running = runChecks([check('first'), check('late', async () => late.promise)], {}, never);
	t.like((await running.next()).value, {name: 'first', status: 'ok'});
	late.resolve(ok);
	t.like((await running.next()).value, {name: 'late', status: 'ok'});
	await running.return();
});

test('a check starts when the checks that it needs have ended without a failure; warnings are allowed', async t => {
	const order: string[] = [];
	const noted =
		(name: string, found: Finding): Check['run'] =>
		async () => {
			order.push(name);
			return found;
		};

	await results([
		check('a', noted('a', {status: 'warning', text: 'slow', remedy: 'Wait.'})),
		check('b', noted('b', ok), {needs: ['a']}),
		check('c', noted('c', ok), {needs: ['a', 'b']}),
	]);
	t.deepEqual(order, ['a', 'b', 'c']);
});

test('a check that depends on a failed check is skipped, with the first cause', async t => {
	const broken = async (): Promise<Finding> => ({status: 'failure', text: 'broken', remedy: 'Mend it.'});
	t.deepEqual(
		shown(
			await results([
				check('a', broken),
				check('b', async () => t.fail(), {needs: ['a']}),
				check('c', async () => t.fail(), {needs: ['b']}),
				check('d'),
			]),
		),
		['a failure broken', 'b skipped needs a, which failed', 'c skipped needs a, which failed', 'd ok well'],
	);
});

test('an error that a check throws is its failure, with the remedy of the error or of the check', async t => {
	const [ours, foreign, atOnce] = await results([
		check(
			'ours',
			async () => {
				throw new AdaptorError({
					code: 'not-found',
					what: 'There is none',
					where: {pool: 'p'},
					remedy: 'Make one.',
				});
			},
			{remedy: 'Look there.'},
		),
		check('foreign', async () => {
			throw new TypeError('oops');
		}),
		check(
			'at-once',
			() => {
				throw new RangeError('early');
			},
			{remedy: 'Look there.'},
		),
	]);
	t.like(ours, {status: 'failure', text: 'There is none (pool "p")', remedy: 'Make one.'});
	t.like(foreign, {status: 'failure', text: 'oops'});
	t.like(atOnce, {status: 'failure', text: 'early', remedy: 'Look there.'});
});

test('a check that hangs fails at its deadline with a remedy, and the others are still reported', async t => {
	const all = await results([check('stuck', forever, {timeoutMs: 20, remedy: 'Look there.'}), check('well')]);
	t.deepEqual(shown(all), ['stuck failure Timed out after 20 ms waiting for stuck', 'well ok well']);
	t.is(all[0]?.remedy, 'Look there.');
});

test('the whole run has a deadline, also for checks that wait for others', async t => {
	const all = await results([check('a', forever), check('b', forever, {needs: ['a']}), check('c')], {
		totalTimeoutMs: 20,
	});
	t.deepEqual(shown(all), [
		'a failure Timed out after 20 ms waiting for all checks',
		'b skipped needs a, which failed',
		'c ok well',
	]);
});

test("an abort ends it with the signal's reason, and every check hears of it", async t => {
	const ending = new AbortController();
	const heard = Promise.withResolvers<unknown>();
	const running = runChecks(
		[
			check('a', async signal => {
				signal.addEventListener('abort', () => heard.resolve(signal.reason));
				return forever();
			}),
		],
		{},
		ending.signal,
	);
	const next = running.next();
	const reason = new Error('no longer wanted');
	setImmediate(() => ending.abort(reason));
	await t.throwsAsync(next, {is: reason});
	t.is(await heard.promise, reason);
});

test('ending the iteration early ends the checks that still run', async t => {
	const aborted = Promise.withResolvers<undefined>();
	for await (const {name} of runChecks(
		[
			check('a'),
			check('b', async signal => {
				signal.addEventListener('abort', () => aborted.resolve(undefined));
				return forever();
			}),
		],
		{},
		never,
	)) {
		t.is(name, 'a');
		break;
	}

	await aborted.promise;
});

test('a list in which a check needs a later one, or none at all, is refused', async t => {
	await t.throwsAsync(results([check('a', undefined, {needs: ['b']}), check('b')]), {
		instanceOf: TypeError,
		message: /needs b/,
	});
});
