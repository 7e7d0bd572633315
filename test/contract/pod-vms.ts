/**
 * The contract of `PodVms`, as a suite that runs over each implementation. Does not know libvirt: the harness inspects
 * the state behind the port, and ends VMs from outside.
 */
import {randomBytes} from 'node:crypto';
import type {ExecutionContext, TestFn} from 'ava';
import {AdaptorError, codeOf} from '../../src/core/errors.ts';
import {Secret} from '../../src/core/log.ts';
import {instanceName} from '../../src/sandbox/instance-name.ts';
import type {PodVms, PodVmSpec} from '../../src/sandbox/ports.ts';
import {PodVmEndedError} from '../../src/sandbox/vm-ended.ts';

export interface PodVmsHarness {
	/**
	 * A `PodVms` of a cluster and node on the same host. A second one for the same node is the daemon after a restart.
	 * @param podsDir null for a daemon that does not mark its VMs, like earlier versions; the same one for all if
	 * absent
	 */
	podVms(node: string, podsDir?: string | null): PodVms;
	/** An existing image other than the default one. */
	readonly otherImage: string;
	/** Ends the VM like an administrator of the host; its definition stays. */
	kill(name: string): Promise<void>;
	/**
	 * Prevents the removal of one part of a VM until `clear`.
	 * @returns the name of the part, and the result of `leftovers` when everything else is removed
	 */
	obstruct(
		vmName: string,
	): Promise<{readonly part: string; readonly left: readonly string[]; clear(): Promise<void>}>;
	/** All state of VMs on the host; empty when all VMs are deleted. */
	leftovers(): Promise<readonly string[]>;
}

export function specOf(more: Partial<PodVmSpec> = {}): PodVmSpec {
	const sandboxId = more.sandboxId ?? randomBytes(32).toString('hex');
	return {
		sandboxId,
		instanceName: `podvm-web-${sandboxId.slice(0, 8)}`,
		pod: {name: 'web', namespace: 'shop'},
		vcpus: 2,
		memoryMib: 512,
		vni: 555_001,
		files: [{path: '/run/peerpod/apf.json', content: new Secret('{}')}],
		...more,
	};
}

const never = new AbortController().signal;

export function podVmsContract(
	test: TestFn,
	name: string,
	harnessFor: (t: ExecutionContext) => Promise<PodVmsHarness>,
): void {
	const claim = (
		title: string,
		check: (t: ExecutionContext, harness: PodVmsHarness, vms: PodVms) => Promise<void>,
	): void => {
		test(`${name}: ${title}`, async t => {
			const harness = await harnessFor(t);
			await check(t, harness, harness.podVms('node'));
		});
	};

	claim('a VM that runs is bound to its address, and is listed as before', async (t, _harness, vms) => {
		const vm = await vms.start(specOf(), never);
		const before = await vms.list(never);
		await vms.bindAddress(vm, '192.168.122.9', never);
		t.deepEqual(await vms.list(never), before);
	});

	claim(
		'a started VM is listed as running with what was recorded of it, also after a restart',
		async (t, harness, vms) => {
			const before = Date.now();
			const spec = specOf({pod: {name: 'web', namespace: 'shop', uid: '8d1c9b3e'}, vni: 7});
			const vm = await vms.start(spec, never);
			t.is(vm.sandboxId, spec.sandboxId);
			t.is(vm.name, spec.instanceName);
			t.regex(vm.mac, /^52(:[0-9a-f]{2}){5}$/);
			for (const daemon of [vms, harness.podVms('node')]) {
				const [record, ...others] = await daemon.list(never);
				t.is(others.length, 0);
				t.like(record, {...vm, pod: spec.pod, vni: 7, running: true});
				const createdAt = record?.createdAt.getTime() ?? 0;
				t.true(createdAt >= before && createdAt <= Date.now());
			}
		},
	);

	claim('each VM is listed with who answers for it, and whoever is of its node may delete it', async (t, harness) => {
		const daemons = [
			harness.podVms('node', '/run/a'),
			harness.podVms('node', '/run/b'),
			harness.podVms('node', null),
		] as const;
		const vms = await Promise.all(daemons.map(async daemon => daemon.start(specOf(), never)));
		const seenBy = async (daemon: PodVms): Promise<unknown> => {
			const records = await daemon.list(never);
			return vms
				.map(({name}) => records.find(record => record.name === name))
				.map(record => [record?.ownership, record?.podsDir]);
		};
		const [ours, unmarked] = [
			['ours', undefined],
			['unmarked', undefined],
		];
		t.deepEqual(await seenBy(daemons[0]), [ours, ['foreign', '/run/b'], unmarked]);
		t.deepEqual(await seenBy(daemons[1]), [['foreign', '/run/a'], ours, unmarked]);
		t.deepEqual(await seenBy(daemons[2]), [unmarked, unmarked, unmarked]);
		t.is(new Set(vms.map(({mac}) => mac)).size, 3, 'they share the slots');
		for (const {sandboxId} of vms) {
			await daemons[0].delete(sandboxId, never);
		}

		t.deepEqual(await harness.leftovers(), []);
	});

	claim(
		'deleting leaves nothing, twice or at once with itself as well, and the MAC is used again',
		async (t, harness, vms) => {
			const spec = specOf();
			const {mac} = await vms.start(spec, never);
			t.not((await harness.leftovers()).length, 0);
			await Promise.all([vms.delete(spec.sandboxId, never), vms.delete(spec.sandboxId, never)]);
			await vms.delete(spec.sandboxId, never);
			t.deepEqual(await harness.leftovers(), []);
			t.deepEqual(await vms.list(never), []);
			t.is((await vms.start(specOf(), never)).mac, mac);
		},
	);

	claim('any sandbox id that may be created may be started, and deleted', async (t, harness, vms) => {
		for (const sandboxId of ['1234567_0', 'x.', 'A']) {
			const {name} = await vms.start(specOf({sandboxId, instanceName: instanceName('web', sandboxId)}), never);
			t.deepEqual(
				(await vms.list(never)).map(record => record.name),
				[name],
			);
			await vms.delete(sandboxId, never);
			t.deepEqual(await harness.leftovers(), []);
		}
	});

	claim(
		'a part that cannot be removed does not keep the others, is named, and keeps the VM listed until it is gone',
		async (t, harness, vms) => {
			const spec = specOf();
			const vm = await vms.start(spec, never);
			const obstacle = await harness.obstruct(vm.name);
			for (const daemon of [vms, harness.podVms('node')]) {
				const error = await t.throwsAsync(daemon.delete(spec.sandboxId, never), {instanceOf: AdaptorError});
				t.true(error.message.includes(obstacle.part), error.message);
				t.truthy(error.remedy);
				t.deepEqual(await harness.leftovers(), obstacle.left);
				t.like(await daemon.list(never), [{...vm, running: false}]);
			}

			await obstacle.clear();
			await vms.delete(spec.sandboxId, never);
			t.deepEqual(await harness.leftovers(), []);
		},
	);

	claim('deleting what was never started succeeds', async (t, harness, vms) => {
		await vms.delete('feedface', never);
		t.deepEqual(await harness.leftovers(), []);
	});

	claim('deletes by the id after a restart, and a VM that was ended from outside too', async (t, harness, vms) => {
		const spec = specOf();
		await vms.start(spec, never);
		await harness.kill(spec.instanceName);
		const [record] = await harness.podVms('node').list(never);
		t.is(record?.running, false);
		await harness.podVms('node').delete(spec.sandboxId, never);
		t.deepEqual(await harness.leftovers(), []);
	});

	claim(
		'VMs that start at the same time, from two daemons of a node as well, never share a MAC',
		async (t, harness, vms) => {
			const other = harness.podVms('node');
			const started = await Promise.all(
				Array.from({length: 6}, async (_, index) => (index % 2 === 0 ? vms : other).start(specOf(), never)),
			);
			t.is(new Set(started.map(({mac}) => mac)).size, started.length);
			t.is(new Set(started.map(({uuid}) => uuid)).size, started.length);
			await Promise.all(started.map(async ({sandboxId}) => vms.delete(sandboxId, never)));
			t.deepEqual(await harness.leftovers(), []);
		},
	);

	claim("another node's VMs are neither listed nor deleted", async (t, harness, vms) => {
		const spec = specOf();
		await harness.podVms('other-node').start(spec, never);
		t.deepEqual(await vms.list(never), []);
		await vms.delete(spec.sandboxId, never);
		t.is((await harness.podVms('other-node').list(never)).length, 1);
	});

	claim('two sandboxes whose ids begin alike are told apart', async (t, _harness, vms) => {
		const [one, two] = ['01234567aaaa', '01234567bbbb'].map((sandboxId, index) =>
			specOf({sandboxId, instanceName: `podvm-${String(index)}-01234567`}),
		);
		if (one === undefined || two === undefined) {
			throw new Error('Two specs were made');
		}

		await vms.start(one, never);
		await vms.start(two, never);
		await vms.delete(one.sandboxId, never);
		t.deepEqual(
			(await vms.list(never)).map(({sandboxId}) => sandboxId),
			[two.sandboxId],
		);
	});

	claim('starting a sandbox that runs is refused and does not touch the VM', async (t, harness, vms) => {
		const spec = specOf();
		const vm = await vms.start(spec, never);
		const before = await harness.leftovers();
		for (const daemon of [vms, harness.podVms('node')]) {
			const error = await t.throwsAsync(daemon.start(spec, never));
			t.is(codeOf(error), 'already-exists');
		}

		t.deepEqual(await harness.leftovers(), before);
		t.like((await vms.list(never))[0], {...vm, running: true});
	});

	claim("a name that another node's VM has is refused", async (t, harness, vms) => {
		const spec = specOf();
		await harness.podVms('other-node').start(spec, never);
		const error = await t.throwsAsync(vms.start(spec, never));
		t.is(codeOf(error), 'already-exists');
		t.is((await harness.podVms('other-node').list(never)).length, 1);
	});

	claim(
		"an image is a volume's name: one that is missing, a path, or a pod VM's disk is refused, and nothing is left",
		async (t, harness, vms) => {
			await vms.start(specOf({image: harness.otherImage}), never);
			const before = await harness.leftovers();
			const missing = await t.throwsAsync(vms.start(specOf({image: 'non-existing-image'}), never), {
				instanceOf: AdaptorError,
			});
			t.is(missing.code, 'not-found');
			t.regex(missing.message, /Can't retrieve volume non-existing-image/);
			for (const image of ['', '/etc/shadow', 'podvm-web-01234567-root.qcow2']) {
				t.is(codeOf(await t.throwsAsync(vms.start(specOf({image}), never))), 'invalid-argument');
			}

			t.deepEqual(await harness.leftovers(), before);
		},
	);

	claim('a start whose signal has aborted leaves nothing and says why', async (t, harness, vms) => {
		await t.throwsAsync(vms.start(specOf(), AbortSignal.abort(new Error('the pod is gone'))), {
			message: 'the pod is gone',
		});
		const abort = new AbortController();
		const starting = vms.start(specOf(), abort.signal);
		abort.abort(new Error('changed my mind'));
		await t.throwsAsync(starting, {message: 'changed my mind'});
		t.deepEqual(await harness.leftovers(), []);
	});

	claim(
		'addresses come once each; the search ends with the VM, with the signal, or when nobody asks any more',
		async (t, harness, vms) => {
			const spec = specOf();
			const vm = await vms.start(spec, never);
			const addresses = vms.addresses(vm, never);
			const {value: address} = await addresses.next();
			t.regex(address, /^\d+\.\d+\.\d+\.\d+$/);

			const abort = new AbortController();
			const aborted = vms.addresses(vm, abort.signal);
			t.is((await aborted.next()).value, address);
			const waiting = aborted.next();
			abort.abort(new Error('enough'));
			await t.throwsAsync(waiting, {message: 'enough'});

			const returned = vms.addresses(vm, never);
			t.is((await returned.next()).value, address);
			const pending = returned.next();
			await returned.return(undefined as never);
			t.true((await pending).done);

			const next = addresses.next();
			await harness.kill(vm.name);
			const error = await t.throwsAsync(next, {instanceOf: PodVmEndedError});
			t.is(error.code, 'aborted');
			t.truthy(error.remedy);
			const late = await t.throwsAsync(vms.addresses(vm, never).next(), {instanceOf: PodVmEndedError});
			t.is(late.code, 'aborted');
		},
	);

	claim(
		'the end of a VM that runs is told to all who wait for it and who ask later, and of no other VM',
		async (t, harness, vms) => {
			const [one, two] = [await vms.start(specOf(), never), await vms.start(specOf(), never)];
			const abort = new AbortController();
			const [ended, alsoEnded, otherEnded] = [
				vms.ended(one, never),
				harness.podVms('node').ended(one, never),
				vms.ended(two, abort.signal),
			];
			await harness.kill(one.name);
			for (const end of [await ended, await alsoEnded, await vms.ended(one, never)]) {
				t.true(end instanceof PodVmEndedError);
				t.is(end.code, 'aborted');
				t.false(end.isRemoved);
				t.regex(end.message, /pod VM ended.*stopped/);
			}

			abort.abort(new Error('no longer interesting'));
			await t.throwsAsync(otherEnded, {message: 'no longer interesting'});
			await t.throwsAsync(vms.ended(two, abort.signal), {message: 'no longer interesting'});
			await vms.delete(one.sandboxId, never);
			t.like(await vms.ended(one, never), {code: 'aborted', isRemoved: true});
		},
	);
}
