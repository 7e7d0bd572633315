import test from 'ava';
import {AdaptorError, codeOf, echoed, toError} from '../../src/core/errors.ts';

test('an error message has what, where and the remedy, in one line', t => {
	const error = new AdaptorError({
		code: 'not-found',
		what: 'Could not create the root volume',
		where: {pool: 'default', volume: 'x.qcow2'},
		remedy: 'Upload it.',
	});
	t.is(error.message, 'Could not create the root volume (pool "default", volume "x.qcow2"). Upload it.');
	t.is(codeOf(error), 'not-found');
});

test('what Node throws when a wait is ended has a code too', t => {
	t.is(codeOf(AbortSignal.abort().reason), 'cancelled');
	t.is(codeOf(new DOMException('', 'TimeoutError')), 'deadline-exceeded');
	t.is(codeOf('anything'), 'internal');
	t.is(toError('anything').message, 'anything');
});

test('at most 256 characters of foreign text are shown, in any part of the error', t => {
	t.is(echoed('x'.repeat(256)), 'x'.repeat(256));
	t.is(echoed('x'.repeat(5_000_000)), `${'x'.repeat(255)}…`);
	t.is(echoed('😀'.repeat(200)), `${'😀'.repeat(127)}\u{fffd}…`);
	const error = new AdaptorError({
		code: 'not-found',
		what: 'There is no such volume',
		where: {image: 'x'.repeat(5_000_000)},
		remedy: 'Name another.',
	});
	t.is(error.message, `There is no such volume (image "${'x'.repeat(255)}…"). Name another.`);
});
