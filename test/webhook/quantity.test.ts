/**
 * Cases of Kubernetes' own test of quantities (apimachinery, pkg/api/resource/quantity_test.go), and what must hold for
 * all.
 */
import test from 'ava';
import fc from 'fast-check';
import {inSteps, mib, one, parseQuantity} from '../../src/webhook/quantity.ts';

/** Text, and what it stands for: an unscaled number and a power of ten. */
const cases: ReadonlyArray<readonly [text: string, unscaled: bigint, exponent: number]> = [
	...['0', '0n', '0u', '0m', '0Ki', '0k', '0Mi', '0M', '0Gi', '0G', '0Ti', '0T'].map(text => [text, 0n, 0] as const),
	['1', 1n, 0],
	['1Ki', 1n << 10n, 0],
	['8Ki', 8n << 10n, 0],
	['7Mi', 7n << 20n, 0],
	['6Gi', 6n << 30n, 0],
	['5Ti', 5n << 40n, 0],
	['4Pi', 4n << 50n, 0],
	['3Ei', 3n << 60n, 0],
	['10Ti', 10n << 40n, 0],
	['100Ti', 100n << 40n, 0],
	['5n', 5n, -9],
	['4u', 4n, -6],
	['3m', 3n, -3],
	['9', 9n, 0],
	['8k', 8n, 3],
	['50k', 5n, 4],
	['7M', 7n, 6],
	['6G', 6n, 9],
	['5T', 5n, 12],
	['40T', 4n, 13],
	['300T', 3n, 14],
	['2P', 2n, 15],
	['1E', 1n, 18],
	['1E-3', 1n, -3],
	['1e3', 1n, 3],
	['1E6', 1n, 6],
	['1e9', 1n, 9],
	['1E12', 1n, 12],
	['1e15', 1n, 15],
	['1E18', 1n, 18],
	['1e14', 1n, 14],
	['1e13', 1n, 13],
	['100.035k', 100_035n, 0],
	['0.001', 1n, -3],
	['0.0005k', 5n, -1],
	['0.005', 5n, -3],
	['0.05', 5n, -2],
	['0.5', 5n, -1],
	['0.00050k', 5n, -1],
	['0.00500', 5n, -3],
	['0.05000', 5n, -2],
	['0.50000', 5n, -1],
	['0.5e0', 5n, -1],
	['0.5e-1', 5n, -2],
	['0.5e-2', 5n, -3],
	['10.035M', 10_035n, 3],
	['1.2e3', 12n, 2],
	['1.3E+6', 13n, 5],
	['1.40e9', 14n, 8],
	['1.53E12', 153n, 10],
	['1.6e15', 16n, 14],
	['1.7E18', 17n, 17],
	['9.01', 901n, -2],
	['8.1k', 81n, 2],
	['7.123456M', 7_123_456n, 0],
	['6.987654321G', 6_987_654_321n, 0],
	['5.444T', 5444n, 9],
	['40.1T', 401n, 11],
	['300.2T', 3002n, 11],
	['2.5P', 25n, 14],
	['1.01E', 101n, 16],
	// Rounded up to a nano, or capped.
	['3.001n', 4n, -9],
	['1.1E-9', 2n, -9],
	['0.0000000001', 1n, -9],
	['0.0000000005', 1n, -9],
	['0.00000000050', 1n, -9],
	['0.5e-9', 1n, -9],
	['0.9n', 1n, -9],
	['0.00000012345', 124n, -9],
	['0.00000012354', 124n, -9],
	['9Ei', 2n ** 63n - 1n, 0],
	['9223372036854775807Ki', 2n ** 63n - 1n, 0],
	['12E', 12n, 18],
	['1000E', 1n, 21],
	['1000000E', 1n, 24],
	['5000E', 5n, 21],
	// Fractions of binary ones.
	['100.035Ki', 10_243_584n, -2],
	['0.5Mi', 512n << 10n, 0],
	['0.05Gi', 536_870_912n, -1],
	['0.025Ti', 274_877_906_944n, -1],
	['1.025Ti', 11_269_994_184_704n, -1],
	['.001Ki', 1024n, -3],
	['.000001Ki', 1024n, -6],
	['.000000001Ki', 1024n, -9],
	['0.000000000001Ki', 2n, -9],
	['.001', 1n, -3],
	['.0001k', 100n, -3],
	['1.', 1n, 0],
	['1.G', 1n, 9],
	['18446744073709551616', 18_446_744_073_709_551_616n, 0],
	['307200Ki', 300n << 20n, 0],
	['1080000000n', 108n, -2],
];

const scaled = (unscaled: bigint, exponent: number): bigint => unscaled * 10n ** BigInt(exponent + 9);

for (const sign of ['', '+', '-']) {
	test(`the test cases of Kubernetes have the same result here, with the sign '${sign}'`, t => {
		for (const [text, unscaled, exponent] of cases) {
			t.is(parseQuantity(sign + text), scaled(sign === '-' ? -unscaled : unscaled, exponent), sign + text);
		}
	});
}

test('quantities that Kubernetes refuses are refused, and also a number without digits', t => {
	for (const text of [
		'',
		'1.1.M',
		'1+1.0M',
		'0.1mi',
		'0.1am',
		'aoeu',
		'.5i',
		'1i',
		'-3.01i',
		'-3.01e-',
		' 1',
		'1 ',
		'Non-Numeric',
		'1K',
		'1KI',
		'1ki',
		'1mi',
		'1e',
		'1e1.5',
		'--1',
		'1m1',
		'1e3Ki',
		'١',
		'.',
		'-.',
		'-',
		'+',
		'm',
		'Mi',
		'0x10',
		'1_000',
		'1,5',
		'1\n',
		'Infinity',
		'NaN',
	]) {
		t.is(parseQuantity(text), undefined, JSON.stringify(text));
	}
});

test('text that would only cost computing time is refused at once', t => {
	for (const text of [
		'1e1000000000',
		'1e-1000000000',
		`1e${'9'.repeat(50)}`,
		'9'.repeat(65),
		`0.${'0'.repeat(1_000_000)}1`,
	]) {
		t.is(parseQuantity(text), undefined);
	}

	t.is(parseQuantity('1e-64'), 1n);
});

test('whole steps are rounded away from zero, as Kubernetes rounds', t => {
	for (const [text, exponent, unscaled] of [
		['9.01', -3, 9010n],
		['9.01', -2, 901n],
		['9.01', -1, 91n],
		['9.01', 0, 10n],
		['9.01', 1, 1n],
		['9.01', 2, 1n],
	] as const) {
		t.is(inSteps(parseQuantity(text) ?? 0n, scaled(1n, exponent)), unscaled);
		t.is(inSteps(parseQuantity(`-${text}`) ?? 0n, scaled(1n, exponent)), -unscaled);
	}

	t.is(inSteps(parseQuantity('100M') ?? 0n, mib), 96n);
	t.is(inSteps(parseQuantity('1') ?? 0n, mib), 1n);
	t.is(inSteps(parseQuantity('0') ?? 0n, mib), 0n);
	t.is(inSteps(parseQuantity('2000m') ?? 0n, one), 2n);
	t.is(inSteps(parseQuantity('2000000001n') ?? 0n, one), 3n);
});

test('property: an amount in nanos that is written with any suffix is parsed to the same amount', t => {
	fc.assert(
		fc.property(
			fc.bigInt(-(10n ** 30n), 10n ** 30n),
			fc.constantFrom<[string, number]>(
				['n', 0],
				['u', 3],
				['m', 6],
				['', 9],
				['k', 12],
				['e-9', 0],
				['E+3', 12],
			),
			(nanos, [suffix, places]) => {
				const digits = String(nanos < 0n ? -nanos : nanos).padStart(places + 1, '0');
				const at = digits.length - places;
				t.is(
					parseQuantity(`${nanos < 0n ? '-' : ''}${digits.slice(0, at)}.${digits.slice(at)}${suffix}`),
					nanos,
				);
			},
		),
	);
});

test('property: no text makes it throw', t => {
	fc.assert(
		fc.property(fc.oneof(fc.string(), fc.stringMatching(/^[\-+.0-9eEKMGTPinumk]{0,70}$/)), text => {
			t.true(['bigint', 'undefined'].includes(typeof parseQuantity(text)));
		}),
	);
});
