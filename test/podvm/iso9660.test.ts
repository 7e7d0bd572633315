// Our images are read back by genisoimage's isoinfo: by Rock Ridge names, by Joliet names, and by neither.
import {mkdtemp, rm, writeFile} from 'node:fs/promises';
import {tmpdir} from 'node:os';
import {join} from 'node:path';
import test, {type ExecutionContext} from 'ava';
import fc from 'fast-check';
import {isoImage, type IsoFile} from '../../src/podvm/iso9660.ts';
import {run} from './run.ts';

const createdAt = new Date('2026-01-02T03:04:05.678Z');

async function imageFile(t: ExecutionContext, files: readonly IsoFile[], label = 'cidata'): Promise<string> {
	const directory = await mkdtemp(join(tmpdir(), 'caat-iso9660-'));
	t.teardown(async () => rm(directory, {recursive: true}));
	const path = join(directory, 'image.iso');
	await writeFile(path, isoImage({label, files, createdAt}));
	return path;
}

async function isoinfo(path: string, ...args: readonly string[]): Promise<Buffer> {
	return run('isoinfo', ['-i', path, ...args]);
}

/** The names in the root directory as isoinfo's `-f` prints them, sorted. */
async function names(path: string, ...extension: readonly string[]): Promise<readonly string[]> {
	return (await isoinfo(path, '-f', ...extension))
		.toString()
		.split('\n')
		.filter(line => line !== '')
		.map(line => line.slice(1))
		.sort();
}

const cidata: readonly IsoFile[] = [
	{name: 'user-data', content: Buffer.from('#cloud-config\n')},
	{name: 'meta-data', content: Buffer.from('local-hostname: podvm-a\n')},
	{name: 'vendor-data', content: Buffer.alloc(0)},
];

test('the descriptor tells the label, the size in sectors, Joliet and Rock Ridge', async t => {
	const path = await imageFile(t, cidata);
	const description = (await isoinfo(path, '-d')).toString();
	t.regex(description, /^Volume id: cidata$/m);
	t.regex(description, /^Logical block size is: 2048$/m);
	t.regex(description, /^Volume size is: 27$/m);
	t.regex(description, /^Joliet with UCS level 3 found$/m);
	t.regex(description, /^Rock Ridge signatures version 1 found$/m);
});

test('Rock Ridge and Joliet spell the names that ISO 9660 alone cannot', async t => {
	const path = await imageFile(t, cidata);
	const expected = ['meta-data', 'user-data', 'vendor-data'];
	t.deepEqual(await names(path, '-R'), expected);
	t.deepEqual(await names(path, '-J'), expected);
	t.deepEqual(await names(path), ['META_DAT.;1', 'USER_DAT.;1', 'VENDOR_D.;1']);
});

test('files are regular, read-only and for root alone; the directory can be entered', async t => {
	const path = await imageFile(t, cidata);
	const listing = (await isoinfo(path, '-l', '-R')).toString();
	t.regex(listing, /^-r--------\s+1\s+0\s+0\s+14 Jan {2}2 2026 .* user-data\s*$/m);
	t.regex(listing, /^dr-xr-xr-x\s+2\s+0\s+0\s+2048 .* \.\s*$/m);
});

test('an image is a whole number of sectors and as large as its descriptor says', t => {
	const image = isoImage({label: 'cidata', files: [{name: 'a', content: Buffer.alloc(2049)}], createdAt});
	t.is(image.length, (25 + 2) * 2048);
	t.is(image.readUInt32BE(16 * 2048 + 84) * 2048, image.length);
	t.is(image.readUInt32LE(16 * 2048 + 80) * 2048, image.length);
});

test('the same files at the same time give the same bytes', t => {
	t.deepEqual(
		isoImage({label: 'cidata', files: cidata, createdAt}),
		isoImage({label: 'cidata', files: cidata, createdAt: new Date(createdAt)}),
	);
	t.notDeepEqual(
		isoImage({label: 'cidata', files: cidata, createdAt}),
		isoImage({label: 'cidata', files: cidata, createdAt: new Date(0)}),
	);
});

test('names that cannot be written are refused', t => {
	for (const name of ['', '.', '..', 'a/b', 'ä', 'a b', 'x'.repeat(65)]) {
		t.throws(
			() => isoImage({label: 'cidata', files: [{name, content: Buffer.alloc(0)}], createdAt}),
			{instanceOf: RangeError},
			name,
		);
	}

	t.throws(() => isoImage({label: 'cidata', files: [...cidata, ...cidata], createdAt}), {instanceOf: RangeError});
	t.throws(() => isoImage({label: 'x'.repeat(17), files: [], createdAt}), {instanceOf: RangeError});
});

test('a file of three megabytes comes back byte for byte', async t => {
	const content = Buffer.from(Array.from({length: 3_000_001}, (_, index) => ((index * 7919) >> 3) & 0xff));
	const path = await imageFile(t, [...cidata, {name: 'large', content}]);
	t.true((await isoinfo(path, '-R', '-x', '/large')).equals(content));
	t.deepEqual(await isoinfo(path, '-R', '-x', '/user-data'), Buffer.from('#cloud-config\n'));
});

test('a directory of more than a sector keeps every name, clashing short names included', async t => {
	const files = Array.from({length: 60}, (_, index) => ({
		name: `a-rather-long-name-of-a-file-${String(index)}`,
		content: Buffer.from(String(index)),
	}));
	const path = await imageFile(t, files);
	const expected = files.map(({name}) => name).sort();
	t.deepEqual(await names(path, '-R'), expected);
	t.deepEqual(await names(path, '-J'), expected);
	t.is(new Set(await names(path)).size, files.length);
	t.is((await isoinfo(path, '-R', '-x', '/a-rather-long-name-of-a-file-59')).toString(), '59');
});

test('any names and contents come back by Rock Ridge and by Joliet', async t => {
	const name = fc.stringMatching(/^[A-Za-z0-9_-][A-Za-z0-9._-]{0,63}$/);
	const content = fc.oneof(
		fc.uint8Array({maxLength: 5000}),
		fc.constantFrom(0, 2047, 2048, 2049, 4096).map(length => new Uint8Array(length).fill(7)),
	);
	const file = fc.record({name, content: content.map(bytes => Buffer.from(bytes))});
	await fc.assert(
		fc.asyncProperty(fc.uniqueArray(file, {selector: ({name}) => name, maxLength: 6}), async files => {
			const path = await imageFile(t, files);
			t.deepEqual(await names(path, '-J'), files.map(({name}) => name).sort());
			for (const {name, content} of files) {
				t.deepEqual(await isoinfo(path, '-R', '-x', `/${name}`), content);
			}
		}),
		{numRuns: 20},
	);
});
