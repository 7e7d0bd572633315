import test from 'ava';
import fc from 'fast-check';
import {isWithinBounds} from '../../src/core/json-bounds.ts';

const isWithin = (text: string, parts: number, depth = 1000): boolean =>
	isWithinBounds(Buffer.from(text), {parts, depth});

/** What a reader counts who has parsed it: openings and commas. */
function partsOf(value: unknown): number {
	if (typeof value !== 'object' || value === null) {
		return 0;
	}

	const members = Object.values(value);
	return 1 + Math.max(0, members.length - 1) + members.reduce<number>((sum, member) => sum + partsOf(member), 0);
}

function depthOf(value: unknown): number {
	return typeof value === 'object' && value !== null
		? 1 + Math.max(0, ...Object.values(value).map(member => depthOf(member)))
		: 0;
}

test('parts and depth are counted as a parser would, whatever stands in strings', t => {
	const text = fc.oneof(fc.string({unit: 'binary'}), fc.stringMatching(/^[\\"\[\]\{\},]*$/));
	const value = fc.letrec(tie => ({
		value: fc.oneof(
			{maxDepth: 5},
			fc.constantFrom(null, 1, true),
			text,
			fc.array(tie('value'), {maxLength: 5}),
			fc.dictionary(text, tie('value'), {maxKeys: 5}),
		),
	})).value;
	fc.assert(
		fc.property(value, fc.constantFrom(undefined, 2), (each, indent) => {
			const json = JSON.stringify(each, undefined, indent);
			const [parts, depth] = [partsOf(each), depthOf(each)];
			return (
				isWithin(json, parts, depth) &&
				(parts === 0 || (!isWithin(json, parts - 1, depth) && !isWithin(json, parts, depth - 1)))
			);
		}),
		{numRuns: 1000},
	);
	t.pass();
});

test('strings that do not end, and quotes behind many backslashes, are gone through once', t => {
	t.true(isWithin(`["${'\\"'.repeat(500_000)}`, 1));
	t.true(isWithin(`["${'\\\\'.repeat(500_000)}"]`, 1));
	t.false(isWithin(`["${'\\\\'.repeat(500_000)}",1]`, 1));
});

test('what is no JSON passes, for the parser to refuse', t => {
	for (const text of ['', 'hush-hush', '"', '\\', ']]}}']) {
		t.true(isWithin(text, 0), text);
	}
});
