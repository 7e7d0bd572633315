import test from 'ava';
import type {AdaptorError} from '../../src/core/errors.ts';
import {assertTransition, type SandboxState} from '../../src/sandbox/admission.ts';

const names: ReadonlyArray<SandboxState['name']> = [
	'creating',
	'recovering',
	'created',
	'starting',
	'booting',
	'running',
	'failed',
	'stopping',
	'gone',
];

function mayFollow(from: SandboxState['name']): string[] {
	return names.filter(to => {
		try {
			assertTransition('a', from, to);
			return true;
		} catch {
			return false;
		}
	});
}

test("no transition leads out of 'gone', and a sandbox that is being removed never becomes usable again", t => {
	t.deepEqual(mayFollow('gone'), []);
	t.deepEqual(mayFollow('stopping'), ['stopping', 'gone']);
});

test('every state that is not gone can be stopped, and only a start leads to a VM', t => {
	for (const name of names.filter(each => each !== 'gone')) {
		t.true(mayFollow(name).includes('stopping'), name);
	}

	t.deepEqual(
		names.filter(name => mayFollow(name).includes('running')),
		['recovering', 'booting'],
	);
});

test('a transition that is not allowed is an error that names the sandbox and both states', t => {
	const error = t.throws<AdaptorError>(() => assertTransition('a', 'failed', 'running'));
	t.like(error, {code: 'internal', what: 'A sandbox may not go from failed to running', where: {sandboxId: 'a'}});
});
