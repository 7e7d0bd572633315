/**
 * Runs checks in parallel and yields their findings in the order of the list. Nothing can hang: each check has a
 * deadline, the whole run has one, and a check that ignores its signal is abandoned. Does not know what is checked.
 */
import {abortable, Scope} from '../core/lifetime.ts';
import {failureOf, type Finding} from './finding.ts';

export interface Check {
	/** Stable: scripts of operators use it. */
	readonly name: string;
	/** The machine that is checked. */
	readonly subject: 'host' | 'node';
	/** Names of earlier checks in the list. This check is skipped if one of them failed or was skipped. */
	readonly needs?: readonly string[];
	readonly timeoutMs?: number;
	/** For a failure without a remedy, such as a timeout. */
	readonly remedy?: string;
	/** An error that it throws is a failure. */
	run(signal: AbortSignal): Promise<Finding>;
}

export interface CheckResult extends Finding, Pick<Check, 'name' | 'subject'> {
	/** Duration of the check, without the time that it waited for other checks. */
	readonly durationMs: number;
}

export interface RunOptions {
	/** For checks without their own timeout. */
	readonly checkTimeoutMs?: number;
	/** For the whole run. */
	readonly totalTimeoutMs?: number;
}

/**
 * Returning early ends the checks that still run.
 * @throws the reason of the signal when it aborts
 * @throws TypeError if a check needs another one that is not before it in the list
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
		scope.abort(new Error('The checks are no longer needed'));
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
		// In a chain of skipped checks, each one gives the first cause.
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
	// `then` turns a synchronous throw into a rejection.
	const found = await abortable(
		Promise.resolve(scope.signal).then(async each => check.run(each)),
		scope.signal,
	).catch((error: unknown) => failureOf(error, remedy));
	return {name, subject, ...found, durationMs: Math.round(performance.now() - startedAt)};
}
