import test from 'ava';
import fc from 'fast-check';
import {holdingsOf, type Volume} from '../../src/image/volumes.ts';
import {imageStem, imageVersionName, readImageVersion, pointsToVersion} from '../../src/vm-image/version-name.ts';

function volume(name: string, backing?: string): Volume {
	return {
		name,
		path: `/pool/${name}`,
		format: 'qcow2',
		capacity: 1n,
		allocation: 1n,
		...(backing === undefined ? {} : {backingPath: `/pool/${backing}`}),
	};
}

const version = 'base-20260101T000000Z.qcow2';

test('a direct or indirect overlay uses an image; an alias does not', t => {
	const {useOf} = holdingsOf(
		[
			volume(version),
			volume('base.qcow2', version),
			volume('a', version),
			volume('b', 'a'),
			volume('through-the-name', 'base.qcow2'),
			volume('other', 'elsewhere'),
		],
		[
			{domain: 'on-b', paths: new Set(['/pool/b'])},
			{domain: 'itself', paths: new Set([`/pool/${version}`])},
			{domain: 'other', paths: new Set(['/pool/other'])},
		],
	);
	t.deepEqual(useOf({path: `/pool/${version}`}), {
		domains: ['itself', 'on-b'],
		volumes: ['a', 'b', 'through-the-name'],
	});
	t.deepEqual(useOf({path: '/pool/base.qcow2'}), {domains: [], volumes: ['through-the-name']});
	t.deepEqual(useOf({path: '/pool/b'}), {domains: ['on-b'], volumes: []});
});

test('a cycle of backing files does not cause an endless loop', t => {
	const {useOf} = holdingsOf([volume('a', 'b'), volume('b', 'a')], []);
	t.deepEqual(useOf({path: '/pool/a'}), {domains: [], volumes: ['b']});
});

test("a version's name is read as it was made, and has the stem of the name", t => {
	fc.assert(
		fc.property(
			fc.stringMatching(/^[a-z0-9.\-]{1,20}$/),
			fc.date({min: new Date(0), max: new Date('9999-12-31'), noInvalidDate: true}),
			fc.constantFrom('qcow2' as const, 'raw' as const),
			(stem, date, format) => {
				const name = imageVersionName(stem, date, format);
				t.deepEqual(readImageVersion(name), {stem, madeAt: new Date(Math.floor(date.getTime() / 1000) * 1000)});
				t.is(imageStem(name), stem);
			},
		),
	);
});

for (const [path, backing, expected] of [
	['/p/base.qcow2', '/p/base-20260101T000000Z.qcow2', true],
	['/p/base', '/p/base-20260101T000000Z.raw', true],
	['/p/base.qcow2', '/q/base-20260101T000000Z.qcow2', false],
	['/p/other.qcow2', '/p/base-20260101T000000Z.qcow2', false],
	['/p/base.qcow2', '/p/base-old.qcow2', false],
	['/p/base.qcow2', '', false],
	['/p/base-20250101T000000Z.qcow2', '/p/base-20260101T000000Z.qcow2', false],
	['/p/podvm-a-root.qcow2', '/p/podvm-base-20260101T000000Z.qcow2', false],
	['/p/base.qcow2', '/p/base-20269901T000000Z.qcow2', false],
] as const) {
	test(`${path} over ${backing} is ${expected ? '' : 'not '}only an alias`, t => {
		t.is(pointsToVersion(path, backing), expected);
	});
}
