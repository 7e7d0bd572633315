/** Runs the checks when the daemon starts, and logs the findings. */
import {AdaptorError} from './core/errors.ts';
import {runChecks, type CheckResult} from './check/run-checks.ts';
import type {Checks} from './checks.ts';
import type {Logger} from './core/log.ts';
import {present} from './core/present.ts';

/** Runs the checks once, then disposes them. @returns the failures @throws the reason of the signal */
export async function checkAndLog(checks: Checks, log: Logger, signal: AbortSignal): Promise<readonly CheckResult[]> {
	using _checks = checks;
	const startedAt = performance.now();
	const results: CheckResult[] = [];
	for await (const result of runChecks(checks.list, {}, signal)) {
		results.push(result);
		const {name, status, text, remedy, durationMs} = result;
		const fields = {check: name, reason: text, durationMs, ...present({remedy})};
		if (status === 'failure') {
			log.error(fields, 'check failed');
		} else if (status === 'warning') {
			log.warn(fields, 'check has a warning');
		} else {
			log.debug(fields, status === 'ok' ? 'check passed' : 'check skipped');
		}
	}

	const failures = results.filter(({status}) => status === 'failure');
	log[failures.length === 0 ? 'info' : 'debug'](
		{count: results.length, durationMs: Math.round(performance.now() - startedAt)},
		failures.length === 0 ? 'checks passed' : 'checks found failures',
	);
	return failures;
}

/** @throws AdaptorError 'failed-precondition' that lists every failure */
export function refuseFailures(failures: readonly CheckResult[]): void {
	if (failures.length > 0) {
		throw new AdaptorError({
			code: 'failed-precondition',
			what: `This node cannot run peer pods: ${failures.map(({name, text, remedy}) => `${name}: ${text}${remedy === undefined ? '' : ` (${remedy.replace(/\.$/v, '')})`}`).join('; ')}`,
			remedy: 'Fix the failures. With CLOUD_CONFIG_VERIFY=false, the daemon starts even if checks fail.',
		});
	}
}

/** Runs the checks while the daemon already serves. Disposing stops them. */
export function checkInBackground(checks: Checks, log: Logger): AsyncDisposable {
	const ending = new AbortController();
	const checking = checkAndLog(checks, log, ending.signal).catch((error: unknown) => {
		if (!ending.signal.aborted) {
			log.warn({err: error}, 'checks aborted');
		}
	});
	return {
		async [Symbol.asyncDispose]() {
			ending.abort(new AdaptorError({code: 'cancelled', what: 'Shutting down'}));
			await checking;
		},
	};
}
