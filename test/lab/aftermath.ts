/** What a test that has failed in the lab leaves to be read. */
import type {ExecutionContext} from 'ava';
import type {Lab} from './lab.ts';
import type {Service} from './service.ts';

/** For `afterEach.always`: what the daemon logged last, and the guests' consoles. */
export async function tellAfterFailure(t: ExecutionContext, daemon: Service, lab: Lab): Promise<void> {
	if (t.passed) {
		return;
	}

	t.log(daemon.tail.slice(-400).join('\n'));
	for (const [domain, text] of await lab.consoles()) {
		t.log(`${domain}: ${text.slice(-1500)}`);
	}
}
