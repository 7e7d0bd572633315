// Which volumes pods may start from, by what they hold: a real storage driver, real qemu-img. A start costs one look at
// a volume, and none at one that was seen.
import {randomBytes} from 'node:crypto';
import {readFile, utimes, writeFile} from 'node:fs/promises';
import test from 'ava';
import {AdaptorError} from '../../src/core/errors.ts';
import {procedures} from '../../src/libvirt/wire/procedures.ts';
import {inOnePiece} from '../../src/libvirt/streams.ts';
import {specOf} from '../contract/pod-vms.ts';
import {bootRecord, qcow2Of} from '../support/disk-image.ts';
import {directoryOf} from '../support/directory.ts';
import {recordingLog} from '../support/recording-log.ts';
import {
	baseVolume,
	domainsNaming,
	intercept,
	never,
	podVmsOn,
	startLibvirtHost,
	type InterceptedCalls,
	type LibvirtHost,
	type TestPool,
} from './libvirt-host.ts';
import {run} from './run.ts';

const gib = 1024n ** 3n;

let host: LibvirtHost;
test.before('a libvirt host', async () => {
	host = await startLibvirtHost();
});
test.after.always('the libvirt host ends', async () => host[Symbol.asyncDispose]());

/** As any tool would: makes the volume, then uploads to it. */
async function upload(
	{name: pool}: TestPool,
	name: string,
	content: Buffer,
	declared: 'qcow2' | 'raw' = 'raw',
): Promise<void> {
	const {pool: handle} = await host.calls.call(procedures.storagePoolLookupByName, {name: pool}, never);
	await host.calls.call(
		procedures.storageVolCreateXml,
		{
			pool: handle,
			xml: `<volume><name>${name}</name><capacity>${content.length}</capacity><target><format type='${declared}'/></target></volume>`,
			flags: 0,
		},
		never,
	);
	await host.calls.upload({pool, name, key: ''}, inOnePiece(content), {offset: 0, length: content.length}, never);
}

/** Files that were put into the pool's directory are volumes from here on. */
async function refresh({name}: TestPool): Promise<void> {
	const {pool} = await host.calls.call(procedures.storagePoolLookupByName, {name}, never);
	await host.calls.call(procedures.storagePoolRefresh, {pool, flags: 0}, never);
}

function downloads({made}: InterceptedCalls): number {
	return made.filter(name => name === 'download').length;
}

const pcBootSector = Buffer.alloc(512, 0x90);
pcBootSector.set([0x55, 0xaa], 510);
const iso = Buffer.alloc(64 * 1024);
iso.write('CD001', 32_769);
const dasd = Buffer.alloc(64 * 1024);
Buffer.from('c9d7d3f1', 'hex').copy(dasd);
/** A DASD in the Linux disk layout: the label in its third block of 4 KiB. */
const linuxDasd = Buffer.alloc(64 * 1024);
Buffer.from('d3d5e7f1', 'hex').copy(linuxDasd, 2 * 4096);
/** What is left when the first block was overwritten: zipl writes its mark into its other blocks, too. */
const programTableOnly = Buffer.alloc(64 * 1024);
programTableOnly.write('zIPL', 4096);
const labelOnly = Buffer.alloc(64 * 1024);
Buffer.from('e5d6d3f1', 'hex').copy(labelOnly, 2 * 4096 + 4);

type Make = (directory: string) => Promise<Buffer>;

async function created(directory: string, ...words: readonly string[]): Promise<Buffer> {
	const path = `${directory}/created`;
	await run('qemu-img', ['create', '-q', '-f', 'qcow2', ...words, path, '1G']);
	return readFile(path);
}

async function encrypted(): Promise<Buffer> {
	const content = await qcow2Of(bootRecord, gib);
	content.writeUInt32BE(2, 32);
	return content;
}

const refusals: ReadonlyArray<readonly [claim: string, why: RegExp, make: Make]> = [
	[
		'an external data file',
		/external data file/,
		async directory => created(directory, '-o', `data_file=${directory}/data`),
	],
	['encryption', /it is encrypted/, encrypted],
	['nothing in it', /the content was not uploaded/, async directory => created(directory)],
	[
		'the boot sector of a PC',
		/no boot record of s390x in its first block \(it has the boot sector of a PC\): an image for another architecture\?/,
		async () => qcow2Of(pcBootSector, gib),
	],
	[
		'the boot sector of a PC, compressed',
		/no boot record of s390x in its first block \(it has the boot sector of a PC\): an image for another architecture\?/,
		async () => qcow2Of(pcBootSector, gib, '-c'),
	],
	[
		'the boot sector of a PC, raw',
		/no boot record of s390x in its first block \(it has the boot sector of a PC\): an image for another architecture\?/,
		async () => Buffer.concat([pcBootSector, Buffer.alloc(1024 * 1024)]),
	],
	[
		'another image in it',
		/no boot record of s390x in its first block \(it contains another qcow2 image\)/,
		async () => qcow2Of(await qcow2Of(bootRecord, gib), 4n * gib),
	],
	[
		"zipl's program table, but nothing in its first block",
		/no boot record of s390x in its first block: an image for another architecture\?/,
		async () => qcow2Of(programTableOnly, gib),
	],
	[
		'the volume label of a DASD, but no IPL record in its first block',
		/no boot record of s390x in its first block: an image for another architecture\?/,
		async () => qcow2Of(labelOnly, gib),
	],
	['a raw disk of zeros', /the content was not uploaded/, async () => Buffer.alloc(1024 * 1024)],
	['a gzip file', /it is a gzip file/, async () => Buffer.concat([Buffer.of(0x1f, 0x8b, 8, 0), randomBytes(5000)])],
	[
		'its end cut off',
		/truncated or damaged/,
		async () => (await qcow2Of(bootRecord, gib)).subarray(0, 3 * 65_536 + 4),
	],
];
for (const [claim, why, make] of refusals) {
	test(`a volume with ${claim} is refused, whoever chose it`, async t => {
		const [pool, calls, cluster] = [await host.pool(), intercept(host.calls), randomBytes(6).toString('hex')];
		await upload(pool, 'hostile', await make(await directoryOf(t)));
		for (const [vms, spec] of [
			[podVmsOn(calls, pool, {cluster}), specOf({image: 'hostile'})],
			[podVmsOn(calls, pool, {cluster, volumeName: 'hostile'}), specOf()],
		] as const) {
			const error = await t.throwsAsync(vms.start(spec, never), {instanceOf: AdaptorError, message: why});
			t.like(error, {
				code: 'failed-precondition',
				reason: 'ImageNotUsable',
				where: {pool: pool.name, volume: 'hostile'},
			});
			t.truthy(error.remedy);
		}

		t.false(
			calls.made.some(name => /Define|Create|upload/.test(name)),
			calls.made.join(' '),
		);
		t.deepEqual(await domainsNaming(host.calls, cluster), []);
	});
}

/** Where the guest's first bytes are: in the overlay, in the file behind it, or nowhere in either. */
const overlays: ReadonlyArray<readonly [claim: string, own: Buffer | undefined, more: readonly string[]]> = [
	['that holds its boot record', bootRecord, []],
	['whose boot record is in its backing file', undefined, []],
	['with extended L2 entries', undefined, ['-o', 'extended_l2=on,cluster_size=128k']],
];
for (const [claim, own, more] of overlays) {
	test(`an overlay ${claim} is refused to pods, a warning if configured`, async t => {
		const [pool, calls, log, cluster] = [
			await host.pool(),
			intercept(host.calls),
			recordingLog(),
			randomBytes(6).toString('hex'),
		];
		const file = `${await directoryOf(t)}/overlay`;
		await run('qemu-img', [
			'create',
			'-q',
			'-f',
			'qcow2',
			...more,
			'-b',
			`${pool.directory}/${baseVolume}`,
			'-F',
			'qcow2',
			file,
		]);
		if (own !== undefined) {
			await writeFile(`${file}.start`, own);
			await run('qemu-io', ['-c', `write -q -s ${file}.start 0 512`, file]);
		}

		await upload(pool, 'overlay', await readFile(file));
		const chosen = podVmsOn(calls, pool, {cluster, log});
		const error = await t.throwsAsync(chosen.start(specOf({image: 'overlay'}), never), {
			instanceOf: AdaptorError,
			message: /it has a backing file.*LIBVIRT_VOL_NAME/,
		});
		t.like(error, {
			code: 'failed-precondition',
			reason: 'ImageNotUsable',
			where: {pool: pool.name, volume: 'overlay'},
		});
		t.false(
			calls.made.some(name => /Define|Create|upload/.test(name)),
			calls.made.join(' '),
		);

		const configured = podVmsOn(calls, pool, {cluster, volumeName: 'overlay', log});
		await configured.start(specOf(), never);
		await configured.start(specOf({image: 'overlay'}), never);
		const warnings = log.lines.filter(
			({level, message}) => level === 'warn' && message.startsWith('the configured image'),
		);
		t.deepEqual(
			warnings.map(({message, fields}) => [message, fields.pool, fields.volume]),
			[['the configured image has a backing file, which is not checked', pool.name, 'overlay']],
		);
	});
}

test('an overlay that itself begins with written zeros is refused, even as the configured image', async t => {
	const [pool, file] = [await host.pool(), `${await directoryOf(t)}/overlay`];
	await run('qemu-img', [
		'create',
		'-q',
		'-f',
		'qcow2',
		'-b',
		`${pool.directory}/${baseVolume}`,
		'-F',
		'qcow2',
		file,
	]);
	await run('qemu-io', ['-c', 'write -q -z 0 64k', file]);
	await upload(pool, 'overlay', await readFile(file));
	await t.throwsAsync(podVmsOn(host.calls, pool, {volumeName: 'overlay'}).start(specOf(), never), {
		message: /the content was not uploaded/,
	});
});

const accepted: ReadonlyArray<readonly [claim: string, make: () => Promise<Buffer>]> = [
	...[
		['compat=0.10', 'compat=0.10'],
		['clusters of 512 bytes', 'cluster_size=512'],
		['clusters of 2 MiB', 'cluster_size=2M'],
		['extended L2 entries', 'extended_l2=on,cluster_size=128k'],
	].map(
		([claim = '', options = '']) =>
			[`qcow2 with ${claim}`, async () => qcow2Of(bootRecord, gib, '-o', options)] as const,
	),
	['compressed qcow2', async () => qcow2Of(bootRecord, gib, '-c')],
	['qcow2 compressed by zstd', async () => qcow2Of(bootRecord, gib, '-c', '-o', 'compression_type=zstd')],
	['a bootable ISO in qcow2', async () => qcow2Of(iso, gib, '-o', 'cluster_size=512')],
	['a DASD in qcow2', async () => qcow2Of(dasd, gib)],
	['a raw DASD', async () => dasd],
	['a raw DASD in the Linux disk layout', async () => linuxDasd],
	[
		"zipl's record before a protective MBR",
		async () =>
			Buffer.concat([Buffer.from('zIPL'), pcBootSector.subarray(4), Buffer.from('EFI PART'), Buffer.alloc(2040)]),
	],
];
for (const [claim, make] of accepted) {
	test(`a VM starts from ${claim}`, async t => {
		const pool = await host.pool();
		await upload(pool, 'image', await make());
		await t.notThrowsAsync(podVmsOn(host.calls, pool).start(specOf({image: 'image'}), never));
	});
}

test('concurrent starts check a volume once, and again only after it has changed', async t => {
	const [pool, calls] = [await host.pool(), intercept(host.calls)];
	const vms = podVmsOn(calls, pool);
	await Promise.all([vms.start(specOf(), never), vms.start(specOf(), never), vms.start(specOf(), never)]);
	t.is(downloads(calls), 1);
	await vms.start(specOf({image: baseVolume}), never);
	t.is(downloads(calls), 1);

	await writeFile(`${pool.directory}/${baseVolume}`, await qcow2Of(pcBootSector, 12n * gib));
	for (let times = 0; times < 2; times++) {
		await t.throwsAsync(vms.start(specOf(), never), {message: /boot sector of a PC/});
	}

	t.is(downloads(calls), 2, 'a refusal is remembered as well');
	await writeFile(`${pool.directory}/${baseVolume}`, await qcow2Of(bootRecord, 12n * gib));
	// A clock of its own: files that are written within one tick of the kernel's have one time.
	await utimes(`${pool.directory}/${baseVolume}`, 1, 1);
	await vms.start(specOf(), never);
	t.is(downloads(calls), 3);
});

test('for an alias, the version is checked, and the result is kept when the alias changes', async t => {
	const [pool, calls] = [await host.pool(), intercept(host.calls)];
	const [good, bad] = ['image-20260101T000000Z.qcow2', 'image-20260101T000001Z.qcow2'];
	await upload(pool, good, await qcow2Of(bootRecord, gib));
	await upload(pool, bad, await qcow2Of(pcBootSector, gib));
	const vms = podVmsOn(calls, pool, {volumeName: 'image.qcow2'});
	const pointTo = async (version: string): Promise<void> => {
		await run('qemu-img', [
			'create',
			'-q',
			'-f',
			'qcow2',
			'-b',
			`${pool.directory}/${version}`,
			'-F',
			'qcow2',
			`${pool.directory}/image.qcow2`,
		]);
		await refresh(pool);
	};
	await pointTo(good);
	await vms.start(specOf(), never);
	t.is(downloads(calls), 1);
	await vms.start(specOf(), never);
	t.is(downloads(calls), 1);
	await pointTo(bad);
	t.like(await t.throwsAsync(vms.start(specOf(), never), {message: /boot sector of a PC/}), {where: {volume: bad}});
	await pointTo(good);
	await vms.start(specOf(), never);
	t.is(downloads(calls), 2);
});

test("if the pool has the alias but not its version, the error is 'not-found'", async t => {
	const pool = await host.pool();
	const version = 'image-20260101T000000Z.qcow2';
	await writeFile(`${pool.directory}/${version}`, await qcow2Of(bootRecord, gib));
	const {pool: handle} = await host.calls.call(procedures.storagePoolLookupByName, {name: pool.name}, never);
	const xml = `<volume><name>image.qcow2</name><capacity>${gib}</capacity><target><format type='qcow2'/></target><backingStore><path>${pool.directory}/${version}</path><format type='qcow2'/></backingStore></volume>`;
	await host.calls.call(procedures.storageVolCreateXml, {pool: handle, xml, flags: 0}, never);
	t.like(
		await t.throwsAsync(podVmsOn(host.calls, pool).start(specOf({image: 'image.qcow2'}), never), {
			instanceOf: AdaptorError,
			message: /pool-refresh/,
		}),
		{code: 'not-found', reason: 'ImageNotFound'},
	);
	await refresh(pool);
	await t.notThrowsAsync(podVmsOn(host.calls, pool).start(specOf({image: 'image.qcow2'}), never));
});
