import {randomBytes} from 'node:crypto';
import {readFile, writeFile} from 'node:fs/promises';
import test from 'ava';
import fc from 'fast-check';
import {AdaptorError} from '../../src/core/errors.ts';
import {checkIsWhole, thinQcow2} from '../../src/image/qcow2.ts';
import {headBytes, readImageFormat} from '../../src/vm-image/judgement.ts';
import {directoryOf} from '../support/directory.ts';
import {execute} from './storage.ts';

async function formatOf(path: string): Promise<ReturnType<typeof readImageFormat>> {
	const content = await readFile(path);
	return readImageFormat(content.subarray(0, headBytes), BigInt(content.length));
}

for (const [name, options, size] of [
	['compat 0.10', 'compat=0.10', '20G'],
	['compat 1.1', 'compat=1.1', '20G'],
	['clusters of 512 bytes', 'cluster_size=512', '64M'],
	['clusters of 2 MiB', 'cluster_size=2M', '3T'],
	['zstd compression', 'compression_type=zstd', '1G'],
	['extended L2 entries', 'extended_l2=on,cluster_size=128k', '1G'],
	['lazy refcounts', 'lazy_refcounts=on', '1G'],
	['an odd size', 'compat=1.1', '1073742336'],
] as const) {
	test(`a qcow2 image of qemu-img with ${name} is accepted, with the size that qemu-img reports`, async t => {
		const path = `${await directoryOf(t)}/a`;
		await execute('qemu-img', ['create', '-q', '-f', 'qcow2', '-o', options, path, size]);
		const {'virtual-size': virtualSize} = JSON.parse(
			(await execute('qemu-img', ['info', '--output=json', path])).stdout,
		) as {'virtual-size': number};
		t.deepEqual(await formatOf(path), {format: 'qcow2', virtualSize: BigInt(virtualSize)});
	});
}

test('images that would make the host open another file, or that it cannot read, are refused', async t => {
	const directory = await directoryOf(t);
	const create = async (name: string, ...options: readonly string[]): Promise<string> => {
		await execute('qemu-img', ['create', '-q', '-f', 'qcow2', ...options, `${directory}/${name}`, '1G']);
		return `${directory}/${name}`;
	};
	const plain = await create('plain');
	const refused = async (path: string, message: RegExp): Promise<void> => {
		const error = await t.throwsAsync(formatOf(path), {instanceOf: AdaptorError, message});
		t.is(error.code, 'failed-precondition');
	};

	await refused(await create('backed', '-b', plain, '-F', 'qcow2'), /backing file/v);
	await refused(await create('data', '-o', `data_file=${directory}/outside.raw`), /external data file/v);
	// Its header says LUKS. qemu-img itself would time its key derivation first, and gives up where the clock of CPU
	// time is coarse.
	const encrypted = await readFile(plain);
	encrypted.writeUInt32BE(2, 32);
	await writeFile(`${directory}/luks`, encrypted);
	await refused(`${directory}/luks`, /encrypted/v);
	const corrupt = await readFile(plain);
	corrupt.writeBigUInt64BE(2n, 72);
	await writeFile(`${directory}/corrupt`, corrupt);
	await refused(`${directory}/corrupt`, /corrupt/v);
	corrupt.writeBigUInt64BE(1n << 40n, 72);
	await writeFile(`${directory}/unknown`, corrupt);
	await refused(`${directory}/unknown`, /unsupported qcow2 features/v);
});

for (const [name, start, message] of [
	['gzip', '1f8b0800', /a gzip file/v],
	['xz', 'fd377a585a00', /an xz file/v],
	['zstd', '28b52ffd', /a zstd file/v],
	['VMDK', '4b444d56', /VMDK/v],
	['LUKS', '4c554b53babe', /LUKS/v],
	['a web page', '3c21444f', /web page/v],
	['a truncated qcow2 header', '514649fb0000', /truncated/v],
	['qcow2 version 1', `514649fb00000001${'00'.repeat(64)}`, /version is 1/v],
] as const) {
	test(`${name} is refused, and the error names the format`, t => {
		const head = Buffer.concat([Buffer.from(start, 'hex'), Buffer.alloc(512 - start.length / 2)]);
		const cut = start.length < 16 && name.includes('cut') ? head.subarray(0, 6) : head;
		t.is(
			t.throws(() => readImageFormat(cut, BigInt(cut.length)), {instanceOf: AdaptorError, message}).code,
			'invalid-argument',
		);
	});
}

test('data that is neither qcow2 nor foreign counts as raw if it could be a disk', t => {
	const disk = Buffer.alloc(headBytes, 'x');
	t.deepEqual(readImageFormat(disk, 1n << 30n), {format: 'raw', virtualSize: 1n << 30n});
	t.throws(() => readImageFormat(disk, (1n << 30n) + 1n), {message: /whole number of sectors/v});
	t.throws(() => readImageFormat(Buffer.alloc(0), 0n), {message: /empty/v});
});

test('an image whose tables are beyond its end is refused before the upload', async t => {
	const path = `${await directoryOf(t)}/a`;
	await execute('qemu-img', ['create', '-q', '-f', 'qcow2', path, '1G']);
	const content = await readFile(path);
	t.throws(() => readImageFormat(content.subarray(0, headBytes), BigInt(headBytes)), {
		instanceOf: AdaptorError,
		message: /truncated or damaged/v,
	});
});

test('any header is taken or refused, never anything else', async t => {
	const path = `${await directoryOf(t)}/a`;
	await execute('qemu-img', ['create', '-q', '-f', 'qcow2', path, '1G']);
	const sound = (await readFile(path)).subarray(0, 1024);
	const change = fc.tuple(fc.nat(200), fc.constantFrom(0, 1, 0x7f, 0x80, 0xff));
	fc.assert(
		fc.property(fc.array(change, {maxLength: 8}), fc.nat(1024), (changes, length) => {
			const head = Buffer.from(sound);
			for (const [at, value] of changes) {
				head[at] = value;
			}

			try {
				const {virtualSize} = readImageFormat(head.subarray(0, length), 1n << 30n);
				t.true(virtualSize > 0n);
			} catch (error) {
				if (!(error instanceof AdaptorError)) {
					throw error;
				}
			}
		}),
		{numRuns: 20_000},
	);
});

for (const [size, backingFormat] of [
	[3n << 30n, 'qcow2'],
	[512n, 'raw'],
	[5n << 40n, 'qcow2'],
] as const) {
	test(`a thin image of ${size} bytes over ${backingFormat} is valid for qemu-img, and shows its backing file`, async t => {
		const directory = await directoryOf(t);
		const [base, thin] = [`${directory}/base`, `${directory}/thin`];
		await execute('qemu-img', ['create', '-q', '-f', backingFormat, base, String(size)]);
		await execute('qemu-io', ['-f', backingFormat, '-c', 'write -q -P 0x5a 0 512', base]);
		await writeFile(thin, thinQcow2({path: base, format: backingFormat}, size));
		await execute('qemu-img', ['check', '-q', '-f', 'qcow2', thin]);
		t.like(JSON.parse((await execute('qemu-img', ['info', '--output=json', thin])).stdout), {
			'virtual-size': Number(size),
			format: 'qcow2',
			'backing-filename': base,
			'backing-filename-format': backingFormat,
		});
		t.notRegex(
			(await execute('qemu-io', ['-f', 'qcow2', '-r', '-c', 'read -P 0x5a 0 512', thin])).stdout,
			/failed/v,
		);
	});
}

for (const [name, ...options] of [
	['compat 0.10', '-o', 'compat=0.10'],
	['compat 1.1', '-o', 'compat=1.1'],
	['clusters of 4 KiB', '-o', 'cluster_size=4k'],
	['clusters of 2 MiB', '-o', 'cluster_size=2M'],
	['compression', '-c'],
	['zstd compression', '-c', '-o', 'compression_type=zstd'],
	['extended L2 entries', '-o', 'extended_l2=on,cluster_size=128k'],
	['everything preallocated', '-o', 'preallocation=metadata'],
] as const) {
	test(`a qcow2 image with ${name} is recognised as complete, and as truncated if it is cut`, async t => {
		const path = `${await directoryOf(t)}/a`;
		await writeFile(
			`${path}.raw`,
			Buffer.concat([Buffer.alloc(1_000_448), randomBytes(6_000_128), Buffer.alloc(4_000_256, 'x')]),
		);
		await execute('qemu-img', ['convert', '-f', 'raw', '-O', 'qcow2', ...options, `${path}.raw`, path]);
		const whole = await readFile(path);
		const check = async (content: Buffer): Promise<void> =>
			checkIsWhole(content.subarray(0, headBytes), BigInt(content.length), async (at, length) =>
				content.subarray(Number(at), Number(at) + length),
			);
		await t.notThrowsAsync(check(whole));
		for (const share of [0.5, 0.6]) {
			t.is(
				(
					await t.throwsAsync(check(whole.subarray(0, Math.floor(whole.length * share))), {
						instanceOf: AdaptorError,
						message: /truncated/v,
					})
				).code,
				'invalid-argument',
			);
		}
	});
}
