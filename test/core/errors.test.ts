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

test('the console follows the remedy; if it is too long for an event, its oldest part is left out', t => {
	const parts = {code: 'aborted', what: 'The pod VM ended', where: {instanceName: 'podvm-a'}} as const;
	const start = 'The pod VM ended (instanceName "podvm-a"). Look at it. Its console ended with: ';
	t.is(
		new AdaptorError({...parts, remedy: 'Look at it.', consoleTail: ['init runs', 'no root']}).message,
		`${start}init runs | no root`,
	);
	t.regex(new AdaptorError({...parts, consoleTail: ['x']}).message, /"podvm-a"\)\. Its console ended with: x$/);
	for (const filler of ['y', 'ß', '😀']) {
		const {message} = new AdaptorError({
			...parts,
			remedy: 'Look at it.',
			consoleTail: ['oldest', filler.repeat(1000), 'newest'],
		});
		t.true(message.startsWith(`${start}…`), message);
		t.true(message.endsWith(`${filler} | newest`));
		t.notRegex(message, /oldest|\uFFFD/);
		t.true(Buffer.byteLength(message) <= 1000 && Buffer.byteLength(message) > 990);
	}

	t.notRegex(
		new AdaptorError({...parts, remedy: `${'z'.repeat(1000)}.`, consoleTail: ['y'.repeat(100)]}).message,
		/console/,
	);
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
