import test from 'ava';
import fc from 'fast-check';
import {inspect} from 'node:util';
import {
	at,
	isWithinBounds,
	JsonError,
	listAt,
	numberAt,
	parseJson,
	parseJsonOrNothing,
	textAt,
	textsAt,
} from '../../src/core/json.ts';

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

test('unterminated strings, and quotes after many backslashes, are scanned only once', t => {
	t.true(isWithin(`["${'\\"'.repeat(500_000)}`, 1));
	t.true(isWithin(`["${'\\\\'.repeat(500_000)}"]`, 1));
	t.false(isWithin(`["${'\\\\'.repeat(500_000)}",1]`, 1));
});

test('text that is not JSON passes, and the parser refuses it', t => {
	for (const text of ['', 'hush-hush', '"', '\\', ']]}}']) {
		t.true(isWithin(text, 0), text);
	}
});

test('an error of parsing says what kind it is, and repeats nothing of the text', t => {
	const malformed = t.throws(() => parseJson('{"password": hunter2}'), {instanceOf: JsonError});
	t.is(malformed.reason, 'malformed');
	t.notRegex(inspect(malformed), /hunter2/v);
	t.is(t.throws(() => parseJson('[[1]]', {parts: 10, depth: 1}), {instanceOf: JsonError}).reason, 'too large');
	t.is(t.throws(() => parseJson('[1,2,3]', {parts: 2, depth: 1}), {instanceOf: JsonError}).reason, 'too large');
	t.deepEqual(parseJson(Buffer.from('[1,2,3]'), {parts: 3, depth: 1}), [1, 2, 3]);
	t.is(parseJsonOrNothing('<html>'), undefined);
});

test('fields are found by their path where the value has them, with their type', t => {
	const value: unknown = JSON.parse(
		'{"a": {"b": "text", "n": 1, "l": [1], "__proto__": {"own": 1}}, "s": {"x": "y", "z": 1}}',
	);
	t.is(textAt(value, 'a', 'b'), 'text');
	t.is(textAt(value, 'a', 'n'), undefined);
	t.is(numberAt(value, 'a', 'n'), 1);
	t.deepEqual(listAt(value, 'a', 'l'), [1]);
	t.deepEqual(listAt(value, 'a', 'b'), []);
	t.deepEqual(textsAt(value, 's'), {x: 'y'});
	t.is(at(value, 'a', 'toString'), undefined);
	t.is(at(value, 'a', '__proto__', 'own'), 1);
	t.is(at('text', 'length'), undefined);
	t.is(at(null, 'a'), undefined);
});
