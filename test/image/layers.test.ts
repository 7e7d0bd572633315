import {randomBytes} from 'node:crypto';
import {gzipSync, zstdCompressSync} from 'node:zlib';
import test, {type ExecutionContext} from 'ava';
import fc from 'fast-check';
import {AdaptorError, type ErrorCode} from '../../src/core/errors.ts';
import {findInLayers, type OpenLayer} from '../../src/image/layers.ts';
import {makeTar, type Files} from './archive.ts';

const path = 'image/podvm.qcow2';
const random = randomBytes(300_000);

interface Layer {
	readonly open: OpenLayer;
	/** How often it was opened, how much of it was read, how often it was closed. */
	readonly seen: {opened: number; bytes: number; closed: number};
}

function layer(bytes: Buffer, chunk = 10_000): Layer {
	const seen = {opened: 0, bytes: 0, closed: 0};
	return {
		seen,
		async *open() {
			seen.opened++;
			try {
				for (let at = 0; at < bytes.length; at += chunk) {
					const part = bytes.subarray(at, at + chunk);
					seen.bytes += part.length;
					yield part;
				}
			} finally {
				seen.closed++;
			}
		},
	};
}

async function find(layers: readonly Layer[], limit?: number): Promise<Buffer> {
	await using file = await findInLayers(
		layers.map(({open}) => open),
		path,
		limit,
	);
	const chunks: Buffer[] = [];
	for await (const chunk of file.chunks()) {
		chunks.push(chunk);
	}

	const content = Buffer.concat(chunks);
	if (BigInt(content.length) !== file.size) {
		throw new Error(`${content.length} bytes of ${file.size}`);
	}

	return content;
}

async function layersOf(...contents: readonly Files[]): Promise<readonly Layer[]> {
	return Promise.all(contents.map(async files => layer(await makeTar(files))));
}

async function refused(t: ExecutionContext, layers: readonly Layer[], code: ErrorCode, message: RegExp): Promise<void> {
	const error = await t.throwsAsync(find(layers), {instanceOf: AdaptorError, message});
	t.is(error.code, code);
	for (const {seen} of layers) {
		t.is(seen.closed, seen.opened);
	}
}

for (const [name, pack] of [
	['gzip', gzipSync],
	['zstd', zstdCompressSync],
	['no compression', (bytes: Buffer) => bytes],
] as const) {
	for (const chunk of [7, 512, 1 << 20]) {
		test(`a file comes out of a layer with ${name} as it went in, in chunks of ${chunk} bytes`, async t => {
			const content = random.subarray(0, chunk === 7 ? 20_000 : random.length);
			const tar = await makeTar({'etc/other': 'before', [path]: content, 'var/more': Buffer.alloc(50_000, 'x')});
			const packed = layer(pack(tar), chunk);
			t.deepEqual(await find([packed]), Buffer.from(content));
			// To its end: its digest is checked there.
			t.is(packed.seen.bytes, pack(tar).length);
			t.is(packed.seen.closed, 1);
		});
	}
}

for (const format of ['gnu', 'pax', 'ustar', 'v7']) {
	test(`tar's ${format} format is read`, async t => {
		t.deepEqual(await find([layer(await makeTar({[path]: random}, `--format=${format}`))]), random);
	});
}

test('a long path is found by its extended header', async t => {
	const long = `${'deep/'.repeat(60)}podvm.qcow2`;
	for (const format of ['gnu', 'pax']) {
		const tar = layer(await makeTar({[long]: 'content'}, `--format=${format}`));
		await using file = await findInLayers([tar.open], long);
		t.is(file.size, 7n);
	}
});

test('names are compared as paths, however an archive writes them', async t => {
	const tar = await makeTar({[path]: 'content'}, '--transform=s,^,.//,');
	t.is((await find([layer(tar)])).toString(), 'content');
});

test('the file comes from the uppermost layer that has it, and lower layers are not fetched', async t => {
	const layers = await layersOf({[path]: 'old'}, {[path]: 'new'}, {'etc/other': 'x'});
	t.is((await find(layers)).toString(), 'new');
	t.deepEqual(
		layers.map(({seen}) => seen.opened),
		[0, 1, 1],
	);
});

const hiding: ReadonlyArray<readonly [name: string, files: Files]> = [
	['a whiteout of the file', {'image/.wh.podvm.qcow2': ''}],
	['a whiteout of its directory', {'.wh.image': ''}],
	['an opaque directory', {'image/.wh..wh..opq': ''}],
	['an opaque root', {'.wh..wh..opq': ''}],
	['a file in the place of its directory', {image: 'x'}],
	['a directory in its place', {'image/podvm.qcow2/x': ''}],
];
for (const [name, files] of hiding) {
	test(`${name} hides it from below, but not in the same layer or above`, async t => {
		const lower = {[path]: 'lower'};
		// GNU tar lists "image/podvm.qcow2/x" only; layers list directories too.
		const hidden = name.startsWith('a directory') ? {[path]: null} : files;
		await refused(t, await layersOf(lower, hidden), 'not-found', /no layer has such a file/v);
		t.is((await find(await layersOf(lower, hidden, {[path]: 'upper'}))).toString(), 'upper');
		if (name.startsWith('a whiteout') || name.startsWith('an opaque')) {
			t.is((await find(await layersOf(lower, {...hidden, [path]: 'same'}))).toString(), 'same');
		}
	});
}

test('whiteouts of other files hide nothing', async t => {
	t.is(
		(
			await find(
				await layersOf(
					{[path]: 'here'},
					{'image/.wh.other': '', 'im/.wh..wh..opq': '', '.wh.imag': '', 'image/.wh.': ''},
				),
			)
		).toString(),
		'here',
	);
});

test('links are not followed, and the error says so', async t => {
	await refused(t, await layersOf({'image/real': 'x', [path]: {linkTo: 'real'}}), 'failed-precondition', /a link/v);
	await refused(t, await layersOf({[path]: 'x'}, {image: {linkTo: '/etc'}}), 'failed-precondition', /a link/v);
});

test('a file that goes upwards in an archive is not the file', async t => {
	await refused(
		t,
		[layer(await makeTar({[path]: 'x'}, '--transform=s,^image,image/../image,', '-P'))],
		'not-found',
		/no layer/v,
	);
});

test('a truncated or mislabelled layer is reported as damaged', async t => {
	const tar = await makeTar({[path]: random});
	await refused(t, [layer(tar.subarray(0, 100_000))], 'data-loss', /truncated/v);
	for (const packed of [gzipSync(tar), zstdCompressSync(tar)]) {
		await refused(t, [layer(packed.subarray(0, 100_000))], 'data-loss', /Could not read a layer/v);
	}

	// gzip has a checksum of its own; what has none is found out by the blob's digest.
	const broken = gzipSync(tar);
	broken.fill(0xaa, 20_000, 20_100);
	await refused(t, [layer(broken)], 'data-loss', /Could not read a layer/v);

	await refused(t, [layer(Buffer.from('not an archive at all'.repeat(100)))], 'data-loss', /Could not read a layer/v);
	// Without the blocks that end it, one archive goes on in another.
	const [one, two] = [await makeTar({[path]: 'x'.repeat(512)}), await makeTar({[path]: 'again'})];
	await refused(t, [layer(Buffer.concat([one.subarray(0, 1024), two]))], 'data-loss', /contains the file twice/v);
});

test('a decompression bomb fails at the limit, with little memory', async t => {
	const bomb = gzipSync(await makeTar({'etc/zero': Buffer.alloc(100_000_000)}));
	t.true(bomb.length < 1_000_000);
	await t.throwsAsync(find([layer(bomb)], 10_000_000), {
		instanceOf: AdaptorError,
		message: /more than 10000000 bytes/v,
	});
});

test('a digest error at the end of the blob reaches the reader of the file', async t => {
	const tar = await makeTar({[path]: random});
	const wrong = new AdaptorError({code: 'data-loss', what: 'the digest is another'});
	await t.throwsAsync(
		async () => {
			await using file = await findInLayers(
				[
					async function* () {
						yield tar;
						throw wrong;
					},
				],
				path,
			);
			for await (const chunk of file.chunks()) {
				t.true(chunk.length > 0);
			}
		},
		{is: wrong},
	);
});

test('a digest error at the end of the blob is reported even if the decompressor has already ended', async t => {
	const tar = await makeTar({[path]: random.subarray(0, 5000)});
	const wrong = new AdaptorError({code: 'data-loss', what: 'the digest is another'});
	for (const packed of [
		Buffer.concat([gzipSync(tar), Buffer.alloc(100)]),
		Buffer.concat([zstdCompressSync(tar), skippable(100)]),
	]) {
		await t.throwsAsync(
			async () => {
				const file = await findInLayers(
					[
						async function* () {
							yield packed;
							// Until the file is out.
							for (let turn = 0; turn < 1000; turn++) {
								await new Promise(setImmediate);
							}

							throw wrong;
						},
					],
					path,
				);
				for await (const chunk of file.chunks()) {
					t.true(chunk.length > 0);
				}
			},
			{is: wrong},
		);
	}
});

/** A zstd frame without data. */
function skippable(length: number): Buffer {
	const frame = Buffer.alloc(8 + length, 'x');
	frame.writeUInt32LE(0x18_4d_2a_53);
	frame.writeUInt32LE(length, 4);
	return frame;
}

for (const chunk of [7, 512, 1 << 20]) {
	test(`a zstd layer of many frames, some of them without data, is read in chunks of ${chunk} bytes`, async t => {
		const tar = await makeTar({[path]: random.subarray(0, 20_000), 'var/more': 'x'});
		const frames = [0, 4000, 4001, 15_000].map((from, index, all) =>
			zstdCompressSync(tar.subarray(from, all[index + 1])),
		);
		const packed = Buffer.concat([
			skippable(4),
			...frames.flatMap(frame => [frame, skippable(0)]),
			skippable(3000),
		]);
		t.deepEqual(await find([layer(packed, chunk)]), Buffer.from(random.subarray(0, 20_000)));
		await refused(
			t,
			[layer(packed.subarray(0, -3016 - (frames.at(-1)?.length ?? 0)), chunk)],
			'data-loss',
			/truncated/v,
		);
		await refused(
			t,
			[layer(Buffer.concat([packed, Buffer.from('what is no frame')]), chunk)],
			'data-loss',
			/Could not read a layer/v,
		);
	});
}

test('any damage gives the file or an AdaptorError', async t => {
	const tars = await Promise.all(
		['gnu', 'pax'].map(async format =>
			makeTar(
				{'etc/x': 'x', [`${'d/'.repeat(80)}f`]: 'y', [path]: random.subarray(0, 3000)},
				`--format=${format}`,
			),
		),
	);
	const damage = fc.array(fc.tuple(fc.nat(12_000), fc.nat(255)), {maxLength: 5});
	await fc.assert(
		fc.asyncProperty(
			fc.constantFrom(...tars),
			damage,
			fc.nat(14_000),
			fc.integer({min: 1, max: 3000}),
			async (tar, changes, length, chunk) => {
				const bytes = Buffer.from(tar.subarray(0, length));
				for (const [at, value] of changes) {
					bytes[at] = value;
				}

				const damaged = layer(bytes, chunk);
				try {
					await find([damaged]);
				} catch (error) {
					if (!(error instanceof AdaptorError)) {
						throw error;
					}
				}

				t.is(damaged.seen.closed, 1);
			},
		),
		{numRuns: 1500, interruptAfterTimeLimit: 2000, markInterruptAsFailure: false},
	);
});
