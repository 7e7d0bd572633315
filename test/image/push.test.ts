import {randomBytes} from 'node:crypto';
import {once} from 'node:events';
import {existsSync} from 'node:fs';
import {readdir, readFile, stat, writeFile} from 'node:fs/promises';
import {createServer} from 'node:net';
import {gzipSync, zstdCompressSync} from 'node:zlib';
import test, {type ExecutionContext} from 'ava';
import {AdaptorError} from '../../src/core/errors.ts';
import {listImages, pruneImages, removeImage, useImage} from '../../src/image/catalogue.ts';
import {pushImage, type PushedImage, type PushOptions} from '../../src/image/push.ts';
import {parseImageReference} from '../../src/image/reference.ts';
import {fileSource, registrySource, type ImageSource} from '../../src/image/source.ts';
import type {LibvirtStorage} from '../../src/image/volumes.ts';
import {LibvirtConnectionError} from '../../src/libvirt/wire/errors.ts';
import {procedures} from '../../src/libvirt/wire/procedures.ts';
import {silentLogger} from '../../src/core/log.ts';
import {readBaseVolume} from '../../src/podvm/volumes.ts';
import {TestApiServer} from '../support/api-server.ts';
import {directoryOf} from '../support/directory.ts';
import {recordingLog} from '../support/recording-log.ts';
import {makeTar} from './archive.ts';
import {run, start} from './command.ts';
import {
	forward,
	makeCertificate,
	pushImage as pushToRegistry,
	registryFor,
	serve,
	startRegistry,
	type TestRegistry,
} from './registry-server.ts';
import {
	bootable,
	execute,
	makeQcow2,
	never,
	startStorage,
	withoutOrigins,
	type Storage,
	type TestPool,
} from './storage.ts';

const name = 'podvm-base.qcow2';
const hour = 3_600_000;
/** Nobody's any more. */
const deadPusher = {machine: '', pid: 2 ** 22, startedAt: '1'};

let storage: Storage;
let registry: TestRegistry;
let image: {readonly path: string; readonly content: Buffer};
/** Versions are a second apart by name; tests do not wait for that. */
let now = Date.parse('2026-01-01T00:00:00Z');

test.before(async () => {
	[storage, registry] = await Promise.all([startStorage(), startRegistry()]);
	image = await makeQcow2(storage.libvirtd.directory, 3_000_000);
});

test.after.always(async () => {
	await registry[Symbol.asyncDispose]();
	await storage[Symbol.asyncDispose]();
});

function optionsFor(pool: TestPool, more: Partial<PushOptions> = {}): PushOptions {
	return {
		session: storage.session,
		pool: pool.name,
		name,
		givesName: true,
		source: fileSource(image.path),
		onProgress: () => undefined,
		log: silentLogger,
		clock: () => new Date((now += 1000)),
		// Most tests push one image several times.
		reuses: false,
		...more,
	};
}

async function push(pool: TestPool, more: Partial<PushOptions> = {}, signal = never): Promise<PushedImage> {
	return pushImage(optionsFor(pool, more), signal);
}

function catalogueOf(pool: TestPool): Parameters<typeof listImages>[0] {
	return {session: storage.session, pool: pool.name, name, now: new Date()};
}

function environmentFor(pool: Pick<TestPool, 'name'>): Readonly<Record<string, string>> {
	return {LIBVIRT_URI: storage.uri, LIBVIRT_POOL: pool.name};
}

function source(
	content: Buffer,
	chunkBytes = 100_000,
	before: (at: number) => Promise<void> = async () => undefined,
): ImageSource {
	return {
		name: 'made up',
		open: async () => ({
			name: 'made up',
			size: BigInt(content.length),
			async *chunks() {
				for (let at = 0; at < content.length; at += chunkBytes) {
					await before(at);
					yield content.subarray(at, at + chunkBytes);
				}
			},
			[Symbol.asyncDispose]: async () => undefined,
		}),
	};
}

async function refused(t: ExecutionContext, pushing: Promise<unknown>, message: RegExp): Promise<AdaptorError> {
	return t.throwsAsync(pushing, {instanceOf: AdaptorError, message});
}

test('an image becomes an identical volume, the alias points to it, and a pod VM uses the version', async t => {
	const pool = await storage.pool();
	const seen: string[] = [];
	const pushed = await push(pool, {onProgress: ({stage, done, total}) => seen.push(`${stage} ${done} of ${total}`)});
	t.like(pushed, {
		format: 'qcow2',
		virtualSize: 3n << 30n,
		size: BigInt(image.content.length),
		source: image.path,
		removed: [],
	});
	t.regex(pushed.volume, /^podvm-base-\d{8}T\d{6}Z\.qcow2$/v);
	t.true((await pool.read(pushed.volume)).equals(image.content));
	t.deepEqual(await pool.files(), [pushed.volume, name]);
	const total = image.content.length;
	t.true(seen.includes(`uploading ${total} of ${total}`) && seen.includes(`checking ${total} of ${total}`));
	t.like(await readBaseVolume(storage.session, pool.name, name, never), {
		name: pushed.volume,
		path: `${pool.directory}/${pushed.volume}`,
		format: 'qcow2',
		capacity: 3n << 30n,
		directory: pool.directory,
	});
	// To anybody else the name is an image, too.
	await execute('qemu-img', ['check', '-q', `${pool.directory}/${name}`]);
	t.like((await listImages(catalogueOf(pool), never))[0], {
		volume: pushed.volume,
		isCurrent: true,
		completeness: 'complete',
		use: {domains: [], volumes: []},
	});
});

for (const [kind, pack] of [
	['gzip', gzipSync],
	['zstd', zstdCompressSync],
	['not at all', (bytes: Buffer) => bytes],
] as const) {
	test(`an image in a layer that is packed ${kind} comes straight out of the registry`, async t => {
		const repository = `org/${kind.replaceAll(' ', '-')}`;
		const digest = await pushToRegistry(registry.host, repository, 'x', [
			pack(await makeTar({'image/podvm.qcow2': image.content})),
			gzipSync(await makeTar({'etc/release': 'x'})),
		]);
		const reference = parseImageReference(`oci::${registry.host}/${repository}:x`);
		using from = registryFor(`${registry.host}/${repository}:x`);
		const pool = await storage.pool();
		const pushed = await push(pool, {
			source: registrySource(from, reference, {os: 'linux', architecture: 's390x'}),
		});
		t.true((await pool.read(pushed.volume)).equals(image.content));
		t.is(pushed.source, `${registry.host}/${repository}@${digest}::/image/podvm.qcow2`);
	});
}

test('a raw image stays raw, and its alias points to it', async t => {
	const pool = await storage.pool();
	const content = bootable(512 * 1000);
	const pushed = await push(pool, {source: source(content)});
	t.like(pushed, {format: 'raw', virtualSize: BigInt(content.length)});
	t.regex(pushed.volume, /Z\.raw$/v);
	t.true((await pool.read(pushed.volume)).equals(content));
	t.like(await readBaseVolume(storage.session, pool.name, name, never), {
		path: `${pool.directory}/${pushed.volume}`,
		format: 'raw',
		capacity: BigInt(content.length),
	});
	await execute('qemu-img', [
		'convert',
		'-O',
		'raw',
		`${pool.directory}/${name}`,
		`${storage.libvirtd.directory}/read-through`,
	]);
	await execute('cmp', [`${storage.libvirtd.directory}/read-through`, `${pool.directory}/${pushed.volume}`]);
});

test('zeros in an image are neither sent nor stored', async t => {
	const pool = await storage.pool();
	const path = `${storage.libvirtd.directory}/sparse.raw`;
	await writeFile(path, image.content);
	await execute('truncate', ['-s', '200M', path]);
	const pushed = await push(pool, {source: fileSource(path)});
	await execute('cmp', [path, `${pool.directory}/${pushed.volume}`]);
	t.true((await stat(`${pool.directory}/${pushed.volume}`)).blocks * 512 < 5_000_000);
});

test('images of the smallest sizes are pushed', async t => {
	const pool = await storage.pool();
	for (const size of [512, 65_536, 65_536 + 512]) {
		const content = bootable(size);
		t.true((await pool.read((await push(pool, {source: source(content)})).volume)).equals(content));
	}
});

test('the alias moves to a new version; versions in use stay, and can be removed after their VMs', async t => {
	const pool = await storage.pool();
	const first = await push(pool);
	await pool.overlay('podvm-a-12345678-root.qcow2', first.volume);
	const second = await push(pool, {
		source: fileSource((await makeQcow2(storage.libvirtd.directory, 200_000, '5G')).path),
	});
	t.like(await readBaseVolume(storage.session, pool.name, name, never), {
		path: `${pool.directory}/${second.volume}`,
		capacity: 5n << 30n,
	});
	await execute('qemu-img', ['check', '-q', `${pool.directory}/${name}`]);
	t.true((await pool.read(first.volume)).equals(image.content));

	const [third, fourth] = [await push(pool), await push(pool)];
	await refused(
		t,
		removeImage(catalogueOf(pool), first.volume, true, never),
		/in use by podvm-a-12345678-root\.qcow2/v,
	);
	t.deepEqual(await pruneImages(catalogueOf(pool), 2, never), [second.volume]);
	await storage.session.call(
		procedures.storageVolDelete,
		{vol: {pool: pool.name, name: 'podvm-a-12345678-root.qcow2', key: ''}, flags: 0},
		never,
	);
	t.deepEqual(await pruneImages(catalogueOf(pool), 2, never), [first.volume]);
	t.deepEqual(await pool.files(), [third.volume, fourth.volume, name]);
});

test('rollback: the alias is pointed to an older version', async t => {
	const pool = await storage.pool();
	const [first, second] = [await push(pool), await push(pool)];
	await useImage(catalogueOf(pool), first.volume, never);
	t.is((await readBaseVolume(storage.session, pool.name, name, never)).path, `${pool.directory}/${first.volume}`);
	// It is kept, old as it is.
	t.deepEqual(await pruneImages(catalogueOf(pool), 1, never), []);
	await push(pool, {givesName: false});
	t.deepEqual(await pruneImages(catalogueOf(pool), 1, never), [second.volume]);
	await refused(t, useImage(catalogueOf(pool), second.volume, never), /no such image/v);
	await refused(t, useImage(catalogueOf(pool), name, never), /not a version/v);
});

test('an image is in use if any domain has it, or an overlay of it, as a disk', async t => {
	const pool = await storage.pool();
	const pushed = await push(pool);
	await pool.overlay('elsewhere.qcow2', pushed.volume);
	for (const [index, disk] of [
		`<source file='${pool.directory}/${pushed.volume}'/>`,
		`<source pool='${pool.name}' volume='elsewhere.qcow2'/>`,
	].entries()) {
		const type = disk.includes('file') ? 'file' : 'volume';
		await storage.session.call(
			procedures.domainDefineXmlFlags,
			{
				xml:
					`<domain type='qemu'><name>${pool.name}-${index}</name><memory>65536</memory><os><type arch='s390x' machine='s390-ccw-virtio'>hvm</type></os>` +
					`<devices><disk type='${type}' device='disk'><driver name='qemu' type='qcow2'/>${disk}<target dev='vda' bus='virtio'/></disk></devices></domain>`,
				flags: 0,
			},
			never,
		);
	}

	const [listed] = await listImages(catalogueOf(pool), never);
	t.deepEqual(listed?.use, {domains: [`${pool.name}-0`, `${pool.name}-1`], volumes: ['elsewhere.qcow2']});
	await refused(t, removeImage(catalogueOf(pool), pushed.volume, true, never), /in use by pool-/v);
});

test('a volume that is not an alias is never overwritten: the push fails before the transfer', async t => {
	const pool = await storage.pool();
	await storage.session.call(
		procedures.storageVolCreateXml,
		{
			pool: pool.pool,
			xml: `<volume><name>${name}</name><capacity>1073741824</capacity><target><format type='qcow2'/></target></volume>`,
			flags: 0,
		},
		never,
	);
	const before = await pool.read(name);
	await refused(
		t,
		push(pool, {source: {name: 'x', open: async () => t.fail('it was opened')}}),
		/a separate image, not an alias.*image rm podvm-base\.qcow2 -force.*-no-switch/v,
	);
	await pool.overlay('podvm-a-12345678-root.qcow2', name);
	await refused(t, push(pool), /in use by podvm-a-12345678-root\.qcow2/v);
	t.true((await pool.read(name)).equals(before));
	const pushed = await push(pool, {givesName: false});
	t.like(await listImages(catalogueOf(pool), never), [
		{volume: name, isCurrent: true},
		{volume: pushed.volume, isCurrent: false},
	]);
});

test('a file that was copied into the pool under the name is found before anything is transferred', async t => {
	const pool = await storage.pool();
	await writeFile(`${pool.directory}/${name}`, image.content);
	await refused(t, push(pool), /separate image, not an alias.*never overwritten/v);
	t.deepEqual(await pool.files(), [name]);
});

test('an image cannot get the name of a pod VM disk, which StartVM would refuse', async t => {
	const pool = await storage.pool();
	await refused(t, push(pool, {name: 'podvm-a-12345678-root.qcow2'}), /name of a pod VM's disk/v);
	t.deepEqual(await pool.files(), []);
});

test('if the alias name is taken during the push, the alias is not changed, and the new version stays', async t => {
	const pool = await storage.pool();
	const error = await refused(
		t,
		push(pool, {
			source: source(image.content, 100_000, async at => {
				if (at === 0) {
					const xml = `<volume><name>${name}</name><capacity>1048576</capacity><target><format type='raw'/></target></volume>`;
					await storage.session.call(procedures.storageVolCreateXml, {pool: pool.pool, xml, flags: 0}, never);
				}
			}),
		}),
		/separate image, not an alias.*The new version itself is complete/v,
	);
	const {volume = ''} = (await listImages(catalogueOf(pool), never)).find(each => !each.isCurrent) ?? {};
	t.true(error.message.includes(`image use ${volume}`));
	t.true((await pool.read(volume)).equals(image.content));
});

test('an alias that other volumes use as backing file is not changed', async t => {
	const pool = await storage.pool();
	const first = await push(pool);
	// As the existing adaptor does.
	await pool.overlay('podvm-a-12345678-root.qcow2', name);
	await refused(t, push(pool), /podvm-a-12345678-root\.qcow2 use the alias as their backing file/v);
	await refused(t, removeImage(catalogueOf(pool), name, true, never), /in use/v);
	await refused(t, removeImage(catalogueOf(pool), first.volume, true, never), /in use/v);
	t.deepEqual(await pool.files(), [first.volume, name, 'podvm-a-12345678-root.qcow2'].sort());
});

test('the current image is removed only with -force, together with its alias', async t => {
	const pool = await storage.pool();
	const {volume} = await push(pool);
	for (const each of [volume, name]) {
		await refused(
			t,
			removeImage(catalogueOf(pool), each, false, never),
			/it is the default image for pods that select no/v,
		);
	}

	t.deepEqual(await removeImage(catalogueOf(pool), volume, true, never), [name, volume]);
	t.deepEqual(await pool.files(), []);
	await refused(t, removeImage(catalogueOf(pool), volume, true, never), /no such image/v);
});

const withoutBootRecord = Buffer.concat([Buffer.alloc(4096), bootable(4096)]);
const failures: ReadonlyArray<readonly [claim: string, source: () => ImageSource, message: RegExp]> = [
	['is no image', () => source(gzipSync(randomBytes(100_000))), /a gzip file/v],
	[
		'is shorter than it said',
		() => ({
			...source(image.content),
			open: async () => ({
				...(await source(image.content.subarray(0, 1_000_000)).open(never)),
				size: BigInt(image.content.length),
			}),
		}),
		/its size differs/v,
	],
	[
		'is longer than it said',
		() => ({
			...source(image.content),
			open: async () => ({
				...(await source(Buffer.concat([image.content, Buffer.alloc(1)])).open(never)),
				size: BigInt(image.content.length),
			}),
		}),
		/its size differs/v,
	],
	[
		'turns out to be wrong at its very end',
		() =>
			source(image.content, 100_000, async at => {
				if (at + 100_000 >= image.content.length) {
					throw new AdaptorError({code: 'data-loss', what: 'the digest is another'});
				}
			}),
		/digest is another/v,
	],
	[
		'has zipl in it but not in its first block',
		() => source(withoutBootRecord),
		/no boot record of s390x in its first block/v,
	],
	[
		'does not fit',
		() => ({name: 'x', open: async () => ({...(await source(image.content).open(never)), size: 1n << 60n})}),
		/not have enough space/v,
	],
];
for (const [claim, of, message] of failures) {
	test(`an image that ${claim} leaves nothing`, async t => {
		const pool = await storage.pool();
		await refused(t, push(pool, {source: of()}), message);
		t.deepEqual(await pool.files(), []);
	});
}

test('an aborted push leaves nothing', async t => {
	const pool = await storage.pool();
	const stopping = new AbortController();
	const stopped = new AdaptorError({code: 'cancelled', what: 'stopped'});
	await t.throwsAsync(
		push(
			pool,
			{
				source: source(image.content, 100_000, async at => {
					if (at > 1_000_000) {
						stopping.abort(stopped);
					}
				}),
			},
			stopping.signal,
		),
		{is: stopped},
	);
	t.deepEqual(await pool.files(), []);
});

for (const [part, isWrong] of [
	['all of it', () => true],
	['the first bytes, which come last', (offset: bigint | number) => offset === 0],
] as const) {
	test(`what is read back must be what was written: ${part}`, async t => {
		const pool = await storage.pool();
		const session: LibvirtStorage = {
			call: async (...args) => storage.session.call(...args),
			upload: async (...args) => storage.session.upload(...args),
			async *download(...args) {
				for await (const chunk of storage.session.download(...args)) {
					const read = Buffer.from(chunk);
					read[0] = (read[0] ?? 0) ^ (isWrong(args[1].offset ?? 0) ? 1 : 0);
					yield read;
				}
			},
		};
		await refused(t, push(pool, {session}), /differs from the written data/v);
		t.deepEqual(await pool.files(), []);
	});
}

/** Dies at its nth step: from then on nothing happens any more, no clean-up either. */
function mortal(steps: number): LibvirtStorage & {readonly died: () => boolean} {
	let taken = 0;
	const live = (): void => {
		if (++taken > steps) {
			throw new Error('dead');
		}
	};
	return {
		died: () => taken > steps,
		async call(...args) {
			live();
			return storage.session.call(...args);
		},
		async upload(vol, chunks, range, signal) {
			live();
			return storage.session.upload(
				vol,
				(async function* () {
					for await (const chunk of chunks) {
						live();
						yield chunk;
					}
				})(),
				range,
				signal,
			);
		},
		async *download(...args) {
			live();
			yield* storage.session.download(...args);
		},
	};
}

test('an incomplete image of a crashed push is never used, and the next push succeeds and removes it', async t => {
	const pool = await storage.pool();
	const {path, content} = await makeQcow2(storage.libvirtd.directory, 100_000);
	let step = 0;
	for (let died = true; died; step++) {
		const session = mortal(step);
		await push(pool, {session, pusher: deadPusher, source: source(content, 150_000)}).catch(() => undefined);
		died = session.died();
		// Whoever may be pushing is elsewhere: time tells.
		const half = (await listImages({...catalogueOf(pool), now: new Date(Date.now() + 2 * hour)}, never)).filter(
			({completeness}) => completeness !== 'complete',
		);
		for (const {volume, completeness} of half) {
			t.is(completeness, 'abandoned');
			await refused(t, readBaseVolume(storage.session, pool.name, volume, never), /upload is not complete/v);
			await refused(t, useImage(catalogueOf(pool), volume, never), /not complete/v);
		}

		const later = Date.now() + 2 * hour + step * 10_000;
		const pushed = await push(pool, {clock: () => new Date(later), source: fileSource(path)});
		t.deepEqual(
			pushed.removed,
			half.map(({volume}) => volume),
		);
		for (const file of await pool.files()) {
			t.true(file === name || (await pool.read(file)).equals(content), file);
			if (file !== name && file !== pushed.volume) {
				await removeImage(catalogueOf(pool), file, false, never);
			}
		}

		t.is(
			(await readBaseVolume(storage.session, pool.name, name, never)).path,
			`${pool.directory}/${pushed.volume}`,
		);
	}

	t.true(step > 15, `${step} steps`);
});

test('if the creation of a volume was not confirmed, a failed push removes the volume', async t => {
	const pool = await storage.pool();
	const session: LibvirtStorage = {
		async call(procedure, ...rest) {
			const result = await storage.session.call(procedure, ...rest);
			if (procedure.name === procedures.storageVolCreateXml.name) {
				throw new LibvirtConnectionError(
					procedure.name,
					true,
					undefined,
					new AdaptorError({code: 'unavailable', what: 'the connection was lost'}),
				);
			}

			return result;
		},
		upload: async (...args) => storage.session.upload(...args),
		download: (...args) => storage.session.download(...args),
	};
	await refused(t, push(pool, {session}), /connection was lost/v);
	t.deepEqual(await pool.files(), []);
});

test('a push that is under way is not touched by others, and completes', async t => {
	const pool = await storage.pool();
	const reached = Promise.withResolvers<undefined>();
	const goOn = Promise.withResolvers<undefined>();
	const slow = push(pool, {
		source: source(image.content, 100_000, async at => {
			if (at > 2_000_000) {
				reached.resolve(undefined);
				await goOn.promise;
			}
		}),
	});
	await reached.promise;
	const [underWay = ''] = await pool.files();
	// Long ago by its clock, but its process lives.
	const later = {...catalogueOf(pool), now: new Date(Date.now() + 100 * hour)};
	t.like(await listImages(later, never), [{volume: underWay, completeness: 'under way'}]);
	const other = await push(pool, {clock: () => new Date(Date.now() + 100 * hour)});
	t.deepEqual(other.removed, []);
	t.deepEqual(await pruneImages(later, 1, never), []);
	await refused(t, removeImage(later, underWay, false, never), /a push is under way/v);
	goOn.resolve(undefined);
	t.is((await slow).volume, underWay);
	t.true((await pool.read(underWay)).equals(image.content));
});

/** A registry that gives that many bytes of each blob and then waits. */
async function stalling(
	bytes: number,
): Promise<{readonly host: string; readonly reached: Promise<undefined>} & AsyncDisposable> {
	const reached = Promise.withResolvers<undefined>();
	const server = await serve((incoming, response) =>
		forward(registry.host, incoming, response, (sent, chunk) => {
			if (sent < bytes) {
				return chunk;
			}

			reached.resolve(undefined);
			return Buffer.alloc(0);
		}),
	);
	return {
		host: server.host,
		reached: reached.promise,
		[Symbol.asyncDispose]: async () => server[Symbol.asyncDispose](),
	};
}

test('kill -9 in the middle of a push: the next one removes what is left, and succeeds', async t => {
	await pushToRegistry(registry.host, 'org/killed', 'latest', [await makeTar({'image/podvm.qcow2': image.content})]);
	const pool = await storage.pool();
	await using slow = await stalling(1_500_000);
	const first = start(t, environmentFor(pool), 'push', `oci::${slow.host}/org/killed`);
	await slow.reached;
	await untilWritten(pool);
	first.child.kill('SIGKILL');
	await first.finished;
	const [half = ''] = await pool.files();
	t.regex(half, /^podvm-base-.*Z\.qcow2$/v);
	t.regex(
		(await run(t, environmentFor(pool), 'list')).out,
		/incomplete, push interrupted[^]*podvm-base\.qcow2 does not exist/v,
	);

	// A second apart, so that the names are others.
	const second = await run(
		t,
		{...environmentFor(pool), PODVM_IMAGE_URI: `oci::${registry.host}/org/killed:latest::/image/podvm.qcow2`},
		'push',
	);
	t.is(second.code, 0, second.err);
	t.true(second.out.includes(`Removed ${half}, left by an interrupted push`), second.out);
	const files = await pool.files();
	t.is(files.length, 2);
	t.false(files.includes(half));
	t.true((await pool.read(files.find(file => file !== name) ?? '')).equals(image.content));
	t.regex(
		(await run(t, environmentFor(pool), 'list')).out,
		/^\* +podvm-base-.*\n\* podvm-base\.qcow2 points to this image\n$/mv,
	);
});

test('Ctrl-C in the middle of a push leaves nothing', async t => {
	await pushToRegistry(registry.host, 'org/stopped', 'latest', [await makeTar({'image/podvm.qcow2': image.content})]);
	const pool = await storage.pool();
	await using slow = await stalling(1_500_000);
	const pushing = start(t, environmentFor(pool), 'push', `${slow.host}/org/stopped`);
	await slow.reached;
	await untilWritten(pool);
	pushing.child.kill('SIGINT');
	const {code, err} = await pushing.finished;
	t.is(code, 130);
	t.regex(err, /^Stopping, and removing the incomplete volume$/mv);
	t.deepEqual(await pool.files(), []);
});

test('leftovers of a failed push are logged at a level that the command shows', async t => {
	const pool = await storage.pool();
	const {session} = storage;
	const log = recordingLog();
	const stubborn: LibvirtStorage = {
		call: async (procedure, args, signal, options) => {
			if (procedure.number === procedures.storageVolDelete.number) {
				throw new AdaptorError({code: 'internal', what: 'No'});
			}

			return session.call(procedure, args, signal, options);
		},
		upload: async (...args) => session.upload(...args),
		download: (...args) => session.download(...args),
	};
	const broken = source(image.content, 100_000, async at => {
		if (at > 1_000_000) {
			throw new AdaptorError({code: 'data-loss', what: 'Gone'});
		}
	});
	await refused(t, push(pool, {session: stubborn, log, source: broken}), /Gone/v);
	const [left = ''] = await pool.files();
	t.like(
		log.lines.find(({level}) => level === 'error'),
		{
			message: 'could not remove an incomplete image; the next push or prune will remove it',
			fields: {volume: left},
		},
	);
});

test('an incomplete qcow2 file is refused, and the alias stays on the previous version', async t => {
	const pool = await storage.pool();
	const good = await push(pool);
	const cut = `${await directoryOf(t)}/cut.qcow2`;
	await writeFile(cut, image.content.subarray(0, image.content.length / 2));
	const {code, err} = await run(t, environmentFor(pool), 'push', cut);
	t.is(code, 2);
	t.regex(err, /refer to data beyond the end of the file: it is truncated or damaged/v);
	t.deepEqual(await pool.files(), [good.volume, name]);
});

test('-registry-ca is trusted besides the usual authorities, and must hold certificates', async t => {
	await using usual = await makeCertificate();
	await using named = await makeCertificate();
	await pushToRegistry(registry.host, 'org/trusted', 'latest', [await makeTar({'image/podvm.qcow2': image.content})]);
	const pool = await storage.pool();
	for (const certificate of [usual, named]) {
		await using closed = await startRegistry({root: registry.root, tls: certificate});
		const {code, err} = await run(
			t,
			{...environmentFor(pool), NODE_EXTRA_CA_CERTS: usual.certPath},
			'push',
			'-registry-ca',
			named.certPath,
			'-no-switch',
			`${closed.host}/org/trusted`,
		);
		t.is(code, 0, err);
	}

	const {code, err} = await run(
		t,
		environmentFor(pool),
		'push',
		'-registry-ca',
		image.path,
		`${registry.host}/org/trusted`,
	);
	t.is(code, 1);
	t.regex(err, /Could not read the registry's certificate authority.*PEM/v);
});

/** Until the note of who is pushing is there; there is no event for it. */
async function untilWritten(pool: Pick<TestPool, 'files' | 'read'>): Promise<void> {
	const giveUpAt = performance.now() + 60_000;
	while (performance.now() < giveUpAt) {
		for (const file of await pool.files()) {
			if ((await pool.read(file)).subarray(0, 64).includes('not complete')) {
				return;
			}
		}
	}

	throw new Error('No push has begun');
}

test('a lost libvirtd in the middle of a push: nothing is left once it is back, and a second push succeeds', async t => {
	await using own = await startStorage();
	const directory = `${own.libvirtd.directory}/images`;
	const env = {LIBVIRT_URI: own.uri, LIBVIRT_POOL: 'images', LIBVIRT_DIR_NAME: directory};
	// What cannot be built is forgotten: a better directory is not in the way.
	const {code: failed, err: why} = await run(
		t,
		{...env, LIBVIRT_DIR_NAME: '/proc/none'},
		'push',
		'-create-pool',
		image.path,
	);
	t.is(failed, 1);
	t.regex(why, /Could not create the storage pool.*\/proc\/none.*LIBVIRT_DIR_NAME/v);
	const created = await run(t, env, 'push', '-create-pool', image.path);
	t.is(created.code, 0, created.err);
	t.regex(created.out, /Pool images: defined in .*\/images, built and started, set to start with the host/v);
	t.true(existsSync(`${own.libvirtd.directory}/config/libvirt/storage/autostart/images.xml`));
	t.notRegex((await run(t, env, 'push', '-create-pool', '-no-switch', image.path)).out, /Pool images/v);

	await pushToRegistry(registry.host, 'org/lost', 'latest', [await makeTar({'image/podvm.qcow2': image.content})]);
	await using slow = await stalling(1_500_000);
	const pool = {
		files: async () => withoutOrigins(await readdir(directory)),
		read: async (file: string) => readFile(`${directory}/${file}`),
	};
	const before = await pool.files();
	const pushing = start(t, env, 'push', `${slow.host}/org/lost`);
	await slow.reached;
	await untilWritten(pool);
	await own.libvirtd.stop();
	await own.libvirtd.start();
	const {code, err} = await pushing.finished;
	t.is(code, 1);
	t.regex(err, /libvirt/v);
	t.deepEqual(await pool.files(), before);
	const second = await run(t, env, 'push', '-new-version', `${registry.host}/org/lost`);
	t.is(second.code, 0, second.err);
	t.is((await pool.files()).length, before.length + 1);
});

test('in a cluster, the config map gets the name of the version, and the alias stays unchanged', async t => {
	await using api = await TestApiServer.start();
	const pool = await storage.pool();
	const first = await push(pool, {source: source(bootable(512 * 100))});
	const inCluster = async (): ReturnType<typeof run> =>
		run(
			t,
			{...environmentFor(pool), ...api.environment, UPDATE_PEERPODS_CM: 'yes', IN_POD_OF: api.accountDirectory},
			'push',
			image.path,
		);
	const early = await inCluster();
	t.is(early.code, 1);
	t.regex(early.err, /config map does not exist.*peer-pods-cm/v);
	t.deepEqual(await pool.files(), [first.volume, name]);

	api.put('configmaps', {
		metadata: {name: 'peer-pods-cm', namespace: api.namespace},
		data: {LIBVIRT_POOL: pool.name, LIBVIRT_VOL_NAME: name},
	});
	const {code, out, err} = await inCluster();
	t.is(code, 0, err);
	const volume = (await pool.files()).find(file => file !== name && file !== first.volume) ?? '';
	t.true(out.includes('are set to this volume'), out);
	t.regex(out, /Warning: the operator restarts the daemon/v);
	t.like(api.find('configmaps', 'peer-pods-cm', api.namespace), {
		data: {LIBVIRT_POOL: pool.name, LIBVIRT_VOL_NAME: volume, LIBVIRT_IMAGE_ID: volume},
	});
	t.is((await readBaseVolume(storage.session, pool.name, name, never)).path, `${pool.directory}/${first.volume}`);
});

test('if libvirtd closes the connection without an answer, the error has the URI and a remedy', async t => {
	const socket = `${await directoryOf(t)}/s`;
	const rude = createServer(each => each.end()).listen(socket);
	t.teardown(() => rude.close());
	await once(rude, 'listening');
	const {code, err} = await run(t, {LIBVIRT_URI: `qemu:///system?socket=${socket}`}, 'list');
	t.is(code, 1);
	t.regex(err, /closed the connection.*uri "qemu:\/\/\/system\?socket=.*cloud-api-adaptor check/v);
});

test('the command explains invalid arguments, and exits with 1 or 2', async t => {
	const pool = await storage.pool();
	const env = environmentFor(pool);
	const directory = await directoryOf(t);
	await writeFile(`${directory}/notes.raw`, 'not an image');
	for (const [words, code, message] of [
		[['push'], 2, /No image to push.*PODVM_IMAGE_URI/v],
		[['push', `${directory}/none.qcow2`], 1, /Could not read the image.*none\.qcow2/v],
		[['push', `${directory}/notes.raw`], 2, /whole number of sectors/v],
		[['push', 'Not/A/Reference'], 2, /oci::REPOSITORY/v],
		[['push', '-platform', 's390x', 'oci::127.0.0.1:1/x'], 2, /-platform is "s390x"; expected OS\/ARCHITECTURE/v],
		[['rm', 'none'], 1, /no such image.*image list/v],
		[['prune', '-keep', '0'], 2, /-keep is "0"; expected a whole number from 1/v],
		[['list', '-pool-name', 'none'], 1, /virsh pool-list/v],
		[
			['push', '-pool-name', 'none', image.path],
			1,
			/Pool none \(LIBVIRT_POOL\) does not exist on the KVM host.*-create-pool/v,
		],
	] as const) {
		const {code: found, err} = await run(t, env, ...words);
		t.is(found, code, err);
		t.regex(err, message);
	}

	t.deepEqual(await pool.files(), []);
});

test('-local-host names allowed redirect targets, and -platform names the label of the image', async t => {
	await pushToRegistry(
		registry.host,
		'org/labelled',
		'latest',
		[await makeTar({'image/podvm.qcow2': image.content})],
		{platform: {os: 'linux', architecture: 'amd64'}},
	);
	const pool = await storage.pool();
	await using front = await serve((incoming, response) => {
		if (incoming.url?.includes('/blobs/') === true) {
			response.writeHead(307, {location: `http://${registry.host}${incoming.url}`}).end();
		} else {
			forward(registry.host, incoming, response);
		}
	});
	const words = ['push', '-no-switch', `${front.host}/org/labelled`];
	for (const [flags, code, message] of [
		[[], 1, /only https is allowed/v],
		[
			['-local-host', `192.0.2.1, ${registry.host}`],
			1,
			/another platform than linux\/s390x.*"linux\/amd64".*-platform/v,
		],
		[['-local-host', registry.host, '-platform', 'linux/amd64'], 0, /^$|Uploading/v],
	] as const) {
		const {code: found, err} = await run(t, environmentFor(pool), words[0] ?? '', ...flags, ...words.slice(1));
		t.is(found, code, err);
		t.regex(err, message);
	}

	t.is((await pool.files()).length, 1);
});

test('content that a version has already makes no new version, whether from a file or from a registry', async t => {
	const pool = await storage.pool();
	const own = await makeQcow2(storage.libvirtd.directory, 200_000);
	const first = await push(pool, {source: fileSource(own.path), reuses: true});
	t.is(first.reused, undefined);
	const newer = await push(pool, {source: source(bootable(51_200))});
	const copy = `${await directoryOf(t)}/copy`;
	await writeFile(copy, own.content);
	const seen = new Set<string>();
	const again = await push(pool, {
		source: fileSource(copy),
		reuses: true,
		onProgress: ({stage}) => seen.add(stage),
	});
	t.like(again, {volume: first.volume, digest: first.digest, format: 'qcow2', virtualSize: 3n << 30n});
	t.is(again.reused?.source, own.path);
	t.deepEqual([...seen], ['comparing']);
	t.is((await readBaseVolume(storage.session, pool.name, name, never)).path, `${pool.directory}/${first.volume}`);
	t.deepEqual(await pool.files(), [first.volume, newer.volume, name].toSorted());

	// The content of a file in a registry is known after its transfer, and from then on by the digest of its manifest.
	await pushToRegistry(registry.host, 'org/same', '1', [await makeTar({'image/podvm.qcow2': own.content})]);
	const {code, out, err} = await run(t, environmentFor(pool), 'push', `${registry.host}/org/same:1`);
	t.is(code, 0, err);
	t.true(out.includes(`The pool has this content already, from ${own.path} at `), out);
	t.deepEqual(await pool.files(), [first.volume, newer.volume, name].toSorted());
});

test('the same manifest digest is found without a transfer, under another name as well', async t => {
	const pool = await storage.pool();
	const layers = [gzipSync(await makeTar({'image/podvm.qcow2': image.content}))];
	const manifest = await pushToRegistry(registry.host, 'org/twice', 'a', layers);
	t.is(await pushToRegistry(registry.host, 'org/twice-elsewhere', 'b', layers), manifest);
	const push = async (...words: readonly string[]): ReturnType<typeof run> =>
		run(t, environmentFor(pool), 'push', ...words);
	t.is((await push(`${registry.host}/org/twice:a`)).code, 0);
	const before = await pool.files();
	const again = await push(`${registry.host}/org/twice-elsewhere:b`);
	t.is(again.code, 0, again.err);
	t.notRegex(again.err, /Uploading/v);
	t.true(again.out.includes(`from ${registry.host}/org/twice:a at `), again.out);
	t.deepEqual(await pool.files(), before);

	const {out} = await run(t, environmentFor(pool), 'list');
	t.true(out.includes(manifest.slice(0, 19)) && out.includes(`${registry.host}/org/twice:a`), out);
	const json = JSON.parse((await run(t, environmentFor(pool), 'list', '-json')).out) as {images: unknown[]};
	t.is(json.images.length, 1);
	t.like(json.images[0], {source: `${registry.host}/org/twice:a`, manifestDigest: manifest});
	t.is((await push('-new-version', `${registry.host}/org/twice:a`)).code, 0);
	t.is((await pool.files()).length, 3);
});

test('a version that somebody has written to is not taken for the content that it had', async t => {
	const pool = await storage.pool();
	const first = await push(pool, {givesName: false});
	await writeFile(`${pool.directory}/${first.volume}`, image.content);
	const second = await push(pool, {givesName: false, reuses: true});
	t.is(second.reused, undefined);
	t.not(second.volume, first.volume);
});

test('the origin of a version goes with it, also when others have removed the version', async t => {
	const pool = await storage.pool();
	const [first, second, third] = [await push(pool), await push(pool), await push(pool)];
	const origins = async (): Promise<readonly string[]> =>
		(await readdir(pool.directory)).filter(file => file.endsWith('.origin.json')).toSorted();
	const named = (...pushed: readonly PushedImage[]): readonly string[] =>
		pushed.map(({volume}) => volume.replace('.qcow2', '.origin.json'));
	t.deepEqual(await origins(), named(first, second, third));
	await removeImage(catalogueOf(pool), first.volume, false, never);
	t.deepEqual(await origins(), named(second, third));
	await storage.session.call(
		procedures.storageVolDelete,
		{vol: {pool: pool.name, name: second.volume, key: ''}, flags: 0},
		never,
	);
	await pruneImages(catalogueOf(pool), 1, never);
	t.deepEqual(await origins(), named(third));
});

test("the image builder's keys and mistyped settings are named before the push", async t => {
	const pool = await storage.pool();
	const {err} = await run(
		t,
		{...environmentFor(pool), PODVM_DISTRO: 'rhel', SE_BOOT: 'true', ACTIVATION_KEY: 'hunter2', LIBVIRT_POLL: 'x'},
		'push',
	);
	t.regex(err, /^Warning: PODVM_DISTRO has no effect: distribution of the image to build;/mv);
	t.regex(err, /^Warning: SE_BOOT has no effect: .*DISABLECVM=false/mv);
	t.regex(err, /^Warning: LIBVIRT_POLL .*did you mean LIBVIRT_POOL/mv);
	t.regex(err, /builds none/v);
	t.false(err.includes('hunter2'));
});

test('with -json, the list is one JSON document', async t => {
	const pool = await storage.pool();
	const {volume} = await push(pool);
	const {out} = await run(t, environmentFor(pool), 'list', '-json');
	t.like(JSON.parse(out), {
		pool: pool.name,
		name,
		images: [
			{
				volume,
				format: 'qcow2',
				virtualSizeBytes: 3_221_225_472,
				state: 'complete',
				current: true,
				usedBy: {domains: [], volumes: []},
			},
		],
	});
});
