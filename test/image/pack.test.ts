/** An image that is packed is a container image to GNU tar, to a real registry and to the push. */
import {randomBytes} from 'node:crypto';
import {readFile, truncate, writeFile} from 'node:fs/promises';
import test from 'ava';
import {AdaptorError} from '../../src/core/errors.ts';
import {packImage} from '../../src/image/pack.ts';
import {parseImageReference} from '../../src/image/reference.ts';
import {archiveSource} from '../../src/image/oci-archive.ts';
import {fileSource, registrySource, type OpenImage} from '../../src/image/source.ts';
import {tarHeader} from '../../src/image/tar-header.ts';
import {TarDecoder} from '../../src/image/tar.ts';
import {directoryOf} from '../support/directory.ts';
import {run} from './command.ts';
import {digestOf, pushBlob, putManifest, registryFor, startRegistry} from './registry-server.ts';
import {execute, makeQcow2, never, startStorage, type Storage} from './storage.ts';

const s390x = {os: 'linux', architecture: 's390x'};
const manifestType = 'application/vnd.oci.image.manifest.v1+json';
let storage: Storage;

test.before(async () => {
	storage = await startStorage();
});

test.after.always(async () => storage[Symbol.asyncDispose]());

async function contentOf(image: OpenImage): Promise<Buffer> {
	const chunks: Buffer[] = [];
	for await (const chunk of image.chunks()) {
		chunks.push(chunk);
	}

	return Buffer.concat(chunks);
}

async function pack(path: string, output: string): ReturnType<typeof packImage> {
	await using image = await fileSource(path).open(never);
	return await packImage({image, output, onProgress: () => undefined});
}

async function inTar(archive: string, name: string): Promise<Buffer> {
	const {stdout} = await execute('tar', ['-xOf', archive, name], {encoding: 'buffer', maxBuffer: 2 ** 30});
	return stdout;
}

test('image pack writes an archive that GNU tar reads, with the image in its only layer', async t => {
	const directory = await directoryOf(t);
	const {path, content} = await makeQcow2(directory, 300_000);
	const output = `${directory}/podvm.oci.tar`;
	const {code, out, err} = await run(t, {}, 'pack', path, '-o', output);
	t.is(code, 0, err);
	t.regex(out, /podvm\.oci\.tar: .*linux\/s390x, sha256:[0-9a-f]{64}, with \/image\/podvm\.qcow2\n.*image push/v);

	const {stdout: names} = await execute('tar', ['-tf', output]);
	t.true(names.includes('oci-layout\nindex.json\nmanifest.json\n'));
	const [docker] = JSON.parse((await inTar(output, 'manifest.json')).toString()) as [
		{Config: string; Layers: [string]},
	];
	t.like(JSON.parse((await inTar(output, docker.Config)).toString()), {
		...s390x,
		config: {Env: ['PODVM_IMAGE_PATH=/image/podvm.qcow2']},
	});
	await writeFile(`${directory}/layer.tar`, await inTar(output, docker.Layers[0]));
	t.true((await inTar(`${directory}/layer.tar`, 'image/podvm.qcow2')).equals(content));
	t.is((await execute('tar', ['-tf', `${directory}/layer.tar`])).stdout, 'image/\nimage/podvm.qcow2\n');
});

test('equal images give equal archives, and an archive that exists is not overwritten', async t => {
	const directory = await directoryOf(t);
	const {path} = await makeQcow2(directory, 100_000);
	const first = await pack(path, `${directory}/1.tar`);
	t.deepEqual(await pack(path, `${directory}/2.tar`), first);
	const bytes = await readFile(`${directory}/1.tar`);
	t.true(bytes.equals(await readFile(`${directory}/2.tar`)));
	t.is(first.size, bytes.length);
	await t.throwsAsync(pack(path, `${directory}/1.tar`), {instanceOf: AdaptorError, message: /the file exists.*-o/v});
	t.true(bytes.equals(await readFile(`${directory}/1.tar`)));
});

test('an image that no VM could boot, and a raw one, are refused and leave no archive', async t => {
	const directory = await directoryOf(t);
	const {path, content} = await makeQcow2(directory, 100_000);
	await writeFile(`${directory}/cut.qcow2`, content.subarray(0, content.length / 2));
	const raw = Buffer.concat([Buffer.from('zIPL'), randomBytes(1020)]);
	await writeFile(`${directory}/disk.raw`, raw);
	await execute('qemu-img', ['create', '-q', '-f', 'qcow2', `${directory}/empty.qcow2`, '1G']);
	for (const [file, message] of [
		['cut.qcow2', /truncated or damaged/v],
		['disk.raw', /it is raw.*qemu-img convert/v],
		['empty.qcow2', /zeros only/v],
	] as const) {
		await t.throwsAsync(pack(`${directory}/${file}`, `${directory}/none.tar`), {
			instanceOf: AdaptorError,
			message,
		});
	}

	await using image = await fileSource(path).open(never);
	let readings = 0;
	const changing = {
		...image,
		async *chunks() {
			readings++;
			yield readings === 1 ? content : Buffer.alloc(content.length);
		},
	};
	await t.throwsAsync(packImage({image: changing, output: `${directory}/none.tar`, onProgress: () => undefined}), {
		instanceOf: AdaptorError,
		message: /changed meanwhile/v,
	});
	await t.throwsAsync(readFile(`${directory}/none.tar`), {code: 'ENOENT'});
});

test('a packed image is pushed back to a pool byte by byte, and once', async t => {
	const directory = await directoryOf(t);
	const {path, content} = await makeQcow2(directory, 200_000);
	const archive = `${directory}/podvm.oci.tar`;
	const {digest} = await pack(path, archive);
	const pool = await storage.pool();
	const env = {LIBVIRT_URI: storage.uri, LIBVIRT_POOL: pool.name};
	const first = await run(t, env, 'push', archive);
	t.is(first.code, 0, first.err);
	t.true(first.out.includes(`Source: ${archive}::/image/podvm.qcow2`), first.out);
	const [version = ''] = await pool.files();
	t.true((await pool.read(version)).equals(content));
	t.true((await run(t, env, 'list')).out.includes(digest.slice(0, 19)));

	const again = await run(t, env, 'push', archive);
	t.regex(again.out, /has this content already/v);
	const plain = await run(t, env, 'push', path);
	t.regex(plain.out, /has this content already/v);
	t.is((await pool.files()).length, 2);
});

test('a registry takes the blobs of the archive as they are, and gives the image back', async t => {
	await using registry = await startRegistry();
	const directory = await directoryOf(t);
	const {path, content} = await makeQcow2(directory, 200_000);
	const archive = `${directory}/podvm.oci.tar`;
	const {digest} = await pack(path, archive);
	const blob = async (name: string): Promise<Buffer> => inTar(archive, `blobs/${name.replace(':', '/')}`);
	const manifest = JSON.parse((await blob(digest)).toString()) as {
		config: {digest: string};
		layers: ReadonlyArray<{digest: string}>;
	};
	for (const {digest: each} of [manifest.config, ...manifest.layers]) {
		const bytes = await blob(each);
		t.is(digestOf(bytes), each);
		await pushBlob(registry.host, 'org/packed', bytes);
	}

	t.is(await putManifest(registry.host, 'org/packed', '1', manifestType, manifest), digest);
	const reference = parseImageReference(`${registry.host}/org/packed:1`);
	using from = registryFor(`${registry.host}/org/packed:1`);
	await using image = await registrySource(from, reference, s390x).open(never);
	t.true((await contentOf(image)).equals(content));
});

test('a damaged archive and one of another kind are refused with what to do', async t => {
	const directory = await directoryOf(t);
	const {path} = await makeQcow2(directory, 200_000);
	const archive = `${directory}/podvm.oci.tar`;
	const {size} = await pack(path, archive);
	const open = async (file: string): Promise<Buffer> => {
		await using image = await archiveSource(file, s390x).open(never);
		return await contentOf(image);
	};
	const refused = async (file: string, message: RegExp): Promise<void> => {
		await t.throwsAsync(open(file), {instanceOf: AdaptorError, message});
	};
	await execute('tar', ['-cf', `${directory}/other.tar`, '-C', directory, 'podvm.oci.tar']);
	await refused(`${directory}/other.tar`, /no index\.json.*image pack/v);
	await t.throwsAsync(
		(async () => {
			await using _ = await archiveSource(archive, {os: 'linux', architecture: 'amd64'}).open(never);
		})(),
		{instanceOf: AdaptorError, message: /another platform than linux\/amd64/v},
	);

	const bytes = await readFile(archive);
	const flipped = Buffer.from(bytes);
	const at = size - 100_000;
	flipped[at] = (flipped[at] ?? 0) ^ 1;
	await writeFile(`${directory}/flipped.tar`, flipped);
	await refused(`${directory}/flipped.tar`, /a blob is not what its digest says/v);
	await writeFile(`${directory}/cut.tar`, bytes);
	await truncate(`${directory}/cut.tar`, size - 50_000);
	await refused(`${directory}/cut.tar`, /cut off/v);
});

test('the header of a file of 8 GiB and more is read back by our reader and by GNU tar', async t => {
	const size = 9_000_000_512;
	const header = tarHeader({name: 'image/podvm.qcow2', size});
	t.deepEqual([...new TarDecoder().push(header)], [{entry: {name: 'image/podvm.qcow2', type: 'file', size}}]);
	const archive = `${await directoryOf(t)}/large.tar`;
	await writeFile(archive, header);
	await truncate(archive, 512 + size + 1024);
	t.regex((await execute('tar', ['-tvf', archive])).stdout, /9000000512.*image\/podvm\.qcow2/v);
});
