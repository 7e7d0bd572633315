/**
 * A KVM host as far as it can be had without privileges, for tests of what we do with it: domains and their events are
 * those of libvirt's test driver, volumes those of a real storage driver (qemu:///session of the same libvirtd, real
 * files, real uploads, real qemu-img), because the test driver takes no uploads. Not real: the capabilities (a recorded
 * host's; the test driver knows no s390x), and the addresses of guests that do not exist. The lab's end-to-end tests
 * run the same code against one real driver with real guests.
 */
import {randomBytes} from 'node:crypto';
import {chown, mkdir, readdir, readFile, truncate, writeFile} from 'node:fs/promises';
import {procedures, type Procedure} from '../../src/libvirt/wire/procedures.ts';
import type {CallOptions} from '../../src/libvirt/session-options.ts';
import {LibvirtSession} from '../../src/libvirt/session.ts';
import type {OpenPipe} from '../../src/libvirt/transport/pipe.ts';
import {parseLibvirtUri} from '../../src/libvirt/uri.ts';
import {openUnixPipe} from '../../src/libvirt/transport/unix-pipe.ts';
import {silentLogger} from '../../src/core/log.ts';
import {HostCapabilities} from '../../src/podvm/host-capabilities.ts';
import type {LibvirtCalls} from '../../src/podvm/libvirt-calls.ts';
import {createPodVms, type PodVmsOptions} from '../../src/podvm/pod-vms.ts';
import type {PodVms} from '../../src/sandbox/ports.ts';
import {bootRecord, qcow2Of} from '../support/disk-image.ts';
import {startTestLibvirtd, type TestLibvirtd} from '../support/libvirtd.ts';

export const never = new AbortController().signal;
export const baseVolume = 'podvm-base.qcow2';
export const baseCapacity = 12n * 1024n ** 3n;

const capabilities = await readFile(new URL('../fixtures/podvm/capabilities-s390x-tcg.xml', import.meta.url), 'utf8');

const bootable = {raw: bootRecord, qcow2: await qcow2Of(bootRecord, baseCapacity)};

export interface LibvirtHost extends AsyncDisposable {
	readonly libvirtd: TestLibvirtd;
	/** Both drivers as one. */
	readonly calls: LibvirtCalls;
	/** The same by connections of their own, over another way. */
	connect(way: (open: OpenPipe) => OpenPipe): Promise<LibvirtCalls & AsyncDisposable>;
	/** A pool of its own with a base volume; one a test, so that tests do not see each other's. */
	pool(): Promise<TestPool>;
}

export interface TestPool {
	readonly name: string;
	/** Of the volumes' files, sorted, without the base volumes'. */
	files(): Promise<readonly string[]>;
	readonly directory: string;
	/** A raw one, besides the base volume. */
	readonly otherVolume: string;
}

export async function startLibvirtHost(): Promise<LibvirtHost> {
	await using undo = new AsyncDisposableStack();
	const libvirtd = undo.use(await startTestLibvirtd());
	const open = openUnixPipe(
		{...parseLibvirtUri(`test:///default?socket=${libvirtd.socketPath}`), transport: 'unix'},
		{},
	);
	const {calls, storage} = await connect(open, undo);
	const connectBy: LibvirtHost['connect'] = async way => {
		await using stack = new AsyncDisposableStack();
		const connected = await connect(way(open), stack);
		const own = stack.move();
		return {...connected.calls, [Symbol.asyncDispose]: async () => own.disposeAsync()};
	};

	const owned = undo.move();
	return {
		libvirtd,
		calls,
		connect: connectBy,
		async pool() {
			const name = `pool-${randomBytes(6).toString('hex')}`;
			const directory = `${libvirtd.directory}/${name}`;
			await mkdir(directory);
			const otherVolume = 'other.raw';
			// Not through libvirt: a libvirtd on which many tests upload at a time loses answers now and then.
			for (const [volume, content] of [
				[baseVolume, bootable.qcow2],
				[otherVolume, bootable.raw],
			] as const) {
				await writeFile(`${directory}/${volume}`, content);
				await chown(`${directory}/${volume}`, libvirtd.uid, libvirtd.uid);
			}

			await truncate(`${directory}/${otherVolume}`, Number(baseCapacity));

			await chown(directory, libvirtd.uid, libvirtd.uid);
			await storage.call(
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
				otherVolume,
				files: async () =>
					(await readdir(directory)).filter(file => file !== baseVolume && file !== otherVolume).sort(),
			};
		},
		[Symbol.asyncDispose]: async () => owned.disposeAsync(),
	};
}

async function connect(
	openPipe: OpenPipe,
	undo: AsyncDisposableStack,
): Promise<{readonly calls: LibvirtCalls; readonly storage: LibvirtSession}> {
	const session = (uri: string): LibvirtSession =>
		undo.use(
			new LibvirtSession({
				uri,
				openPipe,
				reconnectMs: {first: 10, longest: 100},
				connectTimeoutMs: 60_000,
				callTimeoutMs: 120_000,
			}),
		);
	const [domains, storage] = [session('test:///default'), session('qemu:///session')];
	await Promise.all([domains.connect(never), storage.connect(never)]);
	return {
		storage,
		calls: {
			async call(procedure, args, signal, options) {
				if (procedure.name === procedures.connectGetCapabilities.name) {
					return {capabilities} as never;
				}

				return (procedure.name.startsWith('storage') ? storage : domains).call(
					procedure,
					args,
					signal,
					options,
				);
			},
			upload: async (volume, source, range, signal) => storage.upload(volume, source, range, signal),
			download: (volume, range, signal) => storage.download(volume, range, signal),
			onLifecycle: listener => domains.onLifecycle(listener),
			onState: listener => domains.onState(listener),
			console: (domain, signal) => domains.console(domain, signal),
		},
	};
}

/** Options for a daemon on this host; a node of its own unless told. */
export function optionsFor(session: LibvirtCalls, pool: TestPool, more: Partial<PodVmsOptions> = {}): PodVmsOptions {
	return {
		session,
		capabilities: new HostCapabilities(session),
		pool: pool.name,
		network: 'default',
		netFilter: 'auto',
		netIsolation: 'auto',
		volumeName: baseVolume,
		rootDiskSizeGib: 10,
		cluster: 'test',
		node: randomBytes(6).toString('hex'),
		log: silentLogger,
		...more,
	};
}

export function podVmsOn(session: LibvirtCalls, pool: TestPool, more: Partial<PodVmsOptions> = {}): PodVms {
	return createPodVms(optionsFor(session, pool, more));
}

/** Names of the domains with this text in their XML, whatever we think of them. */
export async function domainsNaming(calls: LibvirtCalls, text: string): Promise<readonly string[]> {
	const {domains} = await calls.call(procedures.connectListAllDomains, {needResults: 1, flags: 0}, never);
	const named = await Promise.all(
		domains.map(async dom => {
			// Another test may delete its domain in this moment.
			const {xml} = await calls
				.call(procedures.domainGetXmlDesc, {dom, flags: 0}, never)
				.catch(() => ({xml: ''}));
			return xml.includes(text) ? [dom.name] : [];
		}),
	);
	return named.flat().sort();
}

export type Intercept = (procedure: string, number: number) => Promise<void> | undefined;

export interface InterceptedCalls extends LibvirtCalls {
	/** Names of the procedures called so far, `upload` included, in order. */
	readonly made: string[];
	/** Before a call is made; a rejection takes its place. */
	before: Intercept | undefined;
	/** After a call was sent. */
	during: ((procedure: string, number: number) => void) | undefined;
	/** After a call was carried out; a rejection takes its answer's place. */
	after: Intercept | undefined;
	/** In place of a call's answer; undefined to make the call. */
	answer: ((procedure: string, args: unknown) => unknown) | undefined;
}

export function intercept(calls: LibvirtCalls): InterceptedCalls {
	const through = async <T>(name: string, args: unknown, make: () => Promise<T>): Promise<T> => {
		const number = intercepted.made.push(name);
		await intercepted.before?.(name, number);
		const answer: unknown = intercepted.answer?.(name, args);
		const making = answer === undefined ? make() : Promise.resolve(answer as T);
		intercepted.during?.(name, number);
		const result = await making;
		await intercepted.after?.(name, number);
		return result;
	};

	const intercepted: InterceptedCalls = {
		made: [],
		before: undefined,
		during: undefined,
		after: undefined,
		answer: undefined,
		call: async <Args, Result>(
			procedure: Procedure<Args, Result>,
			args: Args,
			signal: AbortSignal,
			options?: CallOptions,
		) => through(procedure.name, args, async () => calls.call(procedure, args, signal, options)),
		upload: async (volume, source, range, signal) =>
			through('upload', volume, async () => calls.upload(volume, source, range, signal)),
		async *download(volume, range, signal) {
			yield* await through('download', volume, async () => {
				const chunks: Buffer[] = [];
				for await (const chunk of calls.download(volume, range, signal)) {
					chunks.push(chunk);
				}

				return chunks;
			});
		},
		onLifecycle: listener => calls.onLifecycle(listener),
		onState: listener => calls.onState(listener),
		console: (domain, signal) => calls.console(domain, signal),
	};
	return intercepted;
}
