/** Logs for the analysis of a test that failed in the lab. */
import type {ExecutionContext} from 'ava';
import type {Lab} from './lab.ts';
import type {Service} from './service.ts';

/** For `afterEach.always`: prints the last log lines of the daemon, and the consoles of the guests. */
export async function tellAfterFailure(t: ExecutionContext, daemon: Service, lab: Lab): Promise<void> {
	if (t.passed) {
		return;
	}

	t.log(daemon.tail.slice(-400).join('\n'));
	for (const [domain, text] of await lab.consoles()) {
		t.log(`${domain}: ${text.slice(-1500)}`);
	}
}
