/**
 * A KVM host's storage as far as it can be had without privileges: a real libvirtd with real pools of type dir
 * (qemu:///session), so real uploads, real qemu-img, and libvirt's own looking into files.
 */
import {execFile} from 'node:child_process';
import {randomBytes} from 'node:crypto';
import {chown, mkdir, readdir, readFile, rm, writeFile} from 'node:fs/promises';
import {promisify} from 'node:util';
import {procedures, type StoragePool} from '../../src/libvirt/wire/procedures.ts';
import {LibvirtSession} from '../../src/libvirt/session.ts';
import {openUnixPipe} from '../../src/libvirt/transport/unix-pipe.ts';
import {parseLibvirtUri} from '../../src/libvirt/uri.ts';
import {startTestLibvirtd, type TestLibvirtd} from '../support/libvirtd.ts';

export const never = new AbortController().signal;
export const execute = promisify(execFile);

export interface Storage extends AsyncDisposable {
	readonly libvirtd: TestLibvirtd;
	readonly session: LibvirtSession;
	/** For a process of its own. */
	readonly uri: string;
	/** A pool of its own. */
	pool(): Promise<TestPool>;
}

export interface TestPool {
	readonly name: string;
	readonly directory: string;
	readonly pool: StoragePool;
	/** Sorted; without the origins of versions that are there. */
	files(): Promise<readonly string[]>;
	read(file: string): Promise<Buffer>;
	/** As any tool would: `vol-create-as` with a backing volume. */
	overlay(name: string, backing: string): Promise<void>;
}

export async function startStorage(): Promise<Storage> {
	await using undo = new AsyncDisposableStack();
	const libvirtd = undo.use(await startTestLibvirtd());
	const uri = `qemu:///session?socket=${libvirtd.socketPath}`;
	const parsed = parseLibvirtUri(uri);
	const session = undo.use(
		new LibvirtSession({uri: parsed.remoteUri, openPipe: openUnixPipe({...parsed, transport: 'unix'}, {})}),
	);
	await session.connect(never);
	const owned = undo.move();
	return {
		libvirtd,
		session,
		uri,
		async pool() {
			const name = `pool-${randomBytes(6).toString('hex')}`;
			const directory = `${libvirtd.directory}/${name}`;
			await mkdir(directory);
			await chown(directory, libvirtd.uid, libvirtd.uid);
			const {pool} = await session.call(
				procedures.storagePoolCreateXml,
				{
					xml: `<pool type='dir'><name>${name}</name><target><path>${directory}</path></target></pool>`,
					flags: 0,
				},
				never,
			);
			return {
				name,
				directory,
				pool,
				files: async () => withoutOrigins(await readdir(directory)),
				read: async file => readFile(`${directory}/${file}`),
				async overlay(volume, backing) {
					const xml =
						`<volume><name>${volume}</name><capacity>10737418240</capacity><target><format type='qcow2'/></target>` +
						`<backingStore><path>${directory}/${backing}</path><format type='qcow2'/></backingStore></volume>`;
					await session.call(procedures.storageVolCreateXml, {pool, xml, flags: 0}, never);
				},
			};
		},
		[Symbol.asyncDispose]: async () => owned.disposeAsync(),
	};
}

/** The files of a pool, sorted; without the origins of versions that are there. */
export function withoutOrigins(files: readonly string[]): readonly string[] {
	return files
		.filter(
			file =>
				!['qcow2', 'raw'].some(
					format =>
						files.includes(file.replace('.origin.json', `.${format}`)) && file.endsWith('.origin.json'),
				),
		)
		.toSorted();
}

/** Random, but for the mark of zipl's boot record. */
export function bootable(bytes: number): Buffer {
	const content = randomBytes(bytes);
	content.write('zIPL');
	return content;
}

/** A qcow2 image of that many random bytes, for a guest's disk of `virtualSize`. */
export async function makeQcow2(
	directory: string,
	bytes: number,
	virtualSize = '3G',
): Promise<{readonly path: string; readonly content: Buffer}> {
	const name = `${directory}/image-${randomBytes(4).toString('hex')}`;
	await writeFile(`${name}.raw`, bootable(bytes));
	await execute('truncate', ['-s', virtualSize, `${name}.raw`]);
	await execute('qemu-img', ['convert', '-f', 'raw', '-O', 'qcow2', `${name}.raw`, `${name}.qcow2`]);
	await rm(`${name}.raw`);
	return {path: `${name}.qcow2`, content: await readFile(`${name}.qcow2`)};
}
