/** A temporary directory for one test, with a path short enough for unix sockets. Removed after the test. */
import {mkdtemp, rm} from 'node:fs/promises';
import type {ExecutionContext} from 'ava';

export async function directoryOf(t: ExecutionContext): Promise<string> {
	const directory = await mkdtemp('/tmp/caat-');
	t.teardown(async () => rm(directory, {recursive: true, force: true}));
	return directory;
}
