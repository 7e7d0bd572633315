/**
 * Runs checks side by side and tells their findings in the order of the list. Nothing can hang: each check has a
 * deadline of its own, all together have one, and a check that does not heed its signal is left behind. Knows nothing
 * of what is checked.
 */
import {abortable, Scope} from '../core/lifetime.ts';
import {failureOf, type Finding} from './finding.ts';

export interface Check {
	/** Stable: operators' scripts look for it. */
	readonly name: string;
	/** Whose state it is about. */
	readonly subject: 'host' | 'node';
	/** Names of earlier checks of the list: unless all of them found something usable, this one is skipped. */
	readonly needs?: readonly string[];
	readonly timeoutMs?: number;
	/** For a failure that brings none, such as time that ran out. */
	readonly remedy?: string;
	/** What it throws is a failure. */
	run(signal: AbortSignal): Promise<Finding>;
}

export interface CheckResult extends Finding, Pick<Check, 'name' | 'subject'> {
	/** Waiting for the checks that it needs not included. */
	readonly durationMs: number;
}

export interface RunOptions {
	/** For each check that sets none. */
	readonly checkTimeoutMs?: number;
	/** For all together. */
	readonly totalTimeoutMs?: number;
}

/**
 * @throws the signal's reason, once it aborts; returning early ends the checks that still run
 * @throws TypeError for a list in which a check needs one that does not come before it
 */
export async function* runChecks(
	checks: readonly Check[],
	{checkTimeoutMs = 10_000, totalTimeoutMs = 60_000}: RunOptions,
	signal: AbortSignal,
): AsyncGenerator<CheckResult, void, undefined> {
	using scope = new Scope(signal).deadline(totalTimeoutMs, 'all checks');
	const results = new Map<string, Promise<CheckResult>>();
	for (const check of checks) {
		const needed = (check.needs ?? []).map(name => {
			const earlier = results.get(name);
			if (earlier === undefined) {
				throw new TypeError(`The check ${check.name} needs ${name}, which does not come before it`);
			}

			return earlier;
		});
		results.set(check.name, runCheck(check, needed, checkTimeoutMs, scope.signal));
	}

	try {
		for (const result of results.values()) {
			yield await abortable(result, signal);
		}
	} finally {
		scope.abort(new Error('Nobody waits for the checks any more'));
	}
}

/** Never rejects. */
async function runCheck(
	check: Check,
	needed: ReadonlyArray<Promise<CheckResult>>,
	timeoutMs: number,
	signal: AbortSignal,
): Promise<CheckResult> {
	const {name, subject, remedy} = check;
	const unusable = (await Promise.all(needed)).find(({status}) => status === 'failure' || status === 'skipped');
	if (unusable !== undefined) {
		// Of a row of skipped ones, each tells the first cause.
		return {
			name,
			subject,
			status: 'skipped',
			text: unusable.status === 'skipped' ? unusable.text : `needs ${unusable.name}, which failed`,
			durationMs: 0,
		};
	}

	const startedAt = performance.now();
	using scope = new Scope(signal).deadline(check.timeoutMs ?? timeoutMs, name);
	// In a then, so that what is thrown at once is a rejection too.
	const found = await abortable(
		Promise.resolve(scope.signal).then(async each => check.run(each)),
		scope.signal,
	).catch((error: unknown) => failureOf(error, remedy));
	return {name, subject, ...found, durationMs: Math.round(performance.now() - startedAt)};
}
