import test from 'ava';
import fc from 'fast-check';
import {matchesGlob} from '../../src/libvirt/glob.ts';

test('a glob is anchored, and only * and ? mean something', t => {
	for (const [pattern, text] of [
		['*', ''],
		['*', 'abc'],
		['a*c', 'abbc'],
		['a*c', 'ac'],
		['a?c', 'abc'],
		['**a**', 'bab'],
		['*ab*ab', 'abxabab'],
		['', ''],
		['[a].+$^|(x)', '[a].+$^|(x)'],
	] as const) {
		t.true(matchesGlob(pattern, text), `${pattern} ${text}`);
	}

	for (const [pattern, text] of [
		['', 'a'],
		['a', ''],
		['a?c', 'ac'],
		['a*c', 'abcd'],
		['a*c', 'xabc'],
		['.*', 'abc'],
		['[ab]', 'a'],
		['a+', 'aa'],
		['?', ''],
		['*b?', 'ab'],
	] as const) {
		t.false(matchesGlob(pattern, text), `${pattern} ${text}`);
	}
});

/** Says the same in the slowest and plainest way. */
function matchesPlainly(pattern: string, text: string): boolean {
	if (pattern === '') {
		return text === '';
	}

	return pattern.startsWith('*')
		? matchesPlainly(pattern.slice(1), text) || (text !== '' && matchesPlainly(pattern, text.slice(1)))
		: text !== '' &&
				(pattern[0] === '?' || pattern[0] === text[0]) &&
				matchesPlainly(pattern.slice(1), text.slice(1));
}

test('any glob matches the same texts as an equivalent regular expression', t => {
	const of = (...letters: readonly string[]): fc.Arbitrary<string> =>
		fc.array(fc.constantFrom(...letters), {maxLength: 8}).map(parts => parts.join(''));
	fc.assert(
		fc.property(
			of('a', 'b', '*', '?'),
			of('a', 'b'),
			(pattern, text) => matchesGlob(pattern, text) === matchesPlainly(pattern, text),
		),
		{numRuns: 5000},
	);
	t.false(matchesGlob(`${'*a'.repeat(120)}b`, 'a'.repeat(255)), 'and in no time');
});
