import test from 'ava';
import {AdaptorError, codeOf, toError} from '../src/errors.ts';

test('an error tells what, where and what to do, in one line', t => {
	const error = new AdaptorError({code: 'not-found', what: 'Could not create the root volume', where: {pool: 'default', volume: 'x.qcow2'}, remedy: 'Upload it.'});
	t.is(error.message, 'Could not create the root volume (pool "default", volume "x.qcow2"). Upload it.');
	t.is(codeOf(error), 'not-found');
});

test('what Node throws when a wait is ended has a code too', t => {
	t.is(codeOf(AbortSignal.abort().reason), 'cancelled');
	t.is(codeOf(new DOMException('', 'TimeoutError')), 'deadline-exceeded');
	t.is(codeOf('anything'), 'internal');
	t.is(toError('anything').message, 'anything');
});
