/** The contract of `Cluster`. Each implementation calls this suite once from its own test file. */
import type {ExecutionContext, TestFn} from 'ava';
import type {RegisteredVm, Cluster, PodIdentity, Presence} from '../../src/sandbox/ports.ts';

export interface ClusterHarness extends AsyncDisposable {
	readonly cluster: Cluster;
	/** Creates the pod in the cluster. @returns its UID */
	readonly add: (pod: PodIdentity) => string;
	/** Removes the pod from the cluster. */
	readonly remove: (pod: PodIdentity) => void;
	/** Instance names of the registered VMs. */
	readonly claims: () => readonly string[];
	/** The reasons of the events of a pod, as its owner sees them. */
	readonly reasons: (pod: PodIdentity) => readonly string[];
	/** Resolves when the condition holds; work in the background may cause that. */
	readonly until: (condition: () => boolean) => Promise<void>;
	/** Until disposed, the cluster does not answer. */
	readonly silence: () => Disposable;
}

const pod: PodIdentity = {name: 'nginx', namespace: 'default'};
const vm: RegisteredVm = {sandboxId: '1a2b3c4d'.repeat(8), instanceName: 'podvm-nginx-1a2b3c4d', pod};
const next: RegisteredVm = {sandboxId: '5e6f7a8b'.repeat(8), instanceName: 'podvm-nginx-5e6f7a8b', pod};

export function clusterContract(test: TestFn, name: string, makeHarness: () => Promise<ClusterHarness>): void {
	const signal = (): AbortSignal => AbortSignal.timeout(100_000);
	const contract = (claim: string, check: (t: ExecutionContext, harness: ClusterHarness) => Promise<void>): void => {
		test(`${name}: ${claim}`, async t => {
			await using harness = await makeHarness();
			harness.add(pod);
			await check(t, harness);
		});
	};

	contract('a claim gets on record, and claiming again changes nothing', async (t, {cluster, claims, until}) => {
		await cluster.registerVm(vm, signal());
		await until(() => claims().length > 0);
		t.deepEqual(claims(), [vm.instanceName]);
		await cluster.registerVm(vm, signal());
		t.deepEqual(claims(), [vm.instanceName]);
	});

	contract('what is withdrawn goes; another VM of the same pod stays', async (t, {cluster, claims, until}) => {
		await Promise.all([cluster.registerVm(vm, signal()), cluster.registerVm(next, signal())]);
		await until(() => claims().length === 2);
		cluster.unregisterVm(vm);
		await until(() => !claims().includes(vm.instanceName));
		t.deepEqual(claims(), [next.instanceName]);
	});

	contract('withdrawing what was never claimed does nothing', async (t, {cluster, claims, until}) => {
		await cluster.registerVm(next, signal());
		await until(() => claims().length > 0);
		cluster.unregisterVm(vm);
		await cluster.registerVm(next, signal());
		t.deepEqual(claims(), [next.instanceName]);
	});

	contract(
		'reconciling puts on record what is missing, and leaves what is there',
		async (t, {cluster, claims, until}) => {
			await cluster.registerVm(vm, signal());
			await until(() => claims().length === 1);
			cluster.reconcile([vm, next]);
			await until(() => claims().length === 2);
			t.deepEqual(claims().toSorted(), [vm.instanceName, next.instanceName].toSorted());
		},
	);

	contract('reconciling withdraws what is no longer wanted', async (t, {cluster, claims, until}) => {
		cluster.reconcile([vm, next]);
		await until(() => claims().length === 2);
		cluster.reconcile([next]);
		await until(() => claims().length === 1);
		t.deepEqual(claims(), [next.instanceName]);
	});

	contract('of sets that follow each other the newest counts', async (t, {cluster, claims, until}) => {
		cluster.reconcile([vm]);
		cluster.reconcile([]);
		cluster.reconcile([next]);
		await until(() => claims().includes(next.instanceName) && !claims().includes(vm.instanceName));
		t.deepEqual(claims(), [next.instanceName]);
	});

	contract(
		'what was withdrawn is put on record again when it is wanted again',
		async (t, {cluster, claims, until}) => {
			cluster.reconcile([vm]);
			await until(() => claims().length === 1);
			cluster.unregisterVm(vm);
			await until(() => claims().length === 0);
			cluster.reconcile([vm]);
			await until(() => claims().length === 1);
			t.pass();
		},
	);

	contract('a pod is present while it exists, and gone when it does not', async (t, {cluster, add, remove}) => {
		const other: PodIdentity = {name: 'web-0', namespace: 'default'};
		const uid = add(other);
		const presence = async (): Promise<Presence> => cluster.podPresence({...vm, pod: {...other, uid}}, signal());
		t.is(await presence(), 'present');
		remove(other);
		t.is(await presence(), 'gone');
	});

	contract('another pod of the same name is not the pod', async (t, {cluster, add, remove}) => {
		const other: PodIdentity = {name: 'web-0', namespace: 'default'};
		const uid = add(other);
		remove(other);
		add(other);
		t.is(await cluster.podPresence({...vm, pod: {...other, uid}}, signal()), 'gone');
	});

	contract(
		'without a UID a pod of the same name counts, unless the record names another one',
		async (t, {cluster, add, remove, claims, until}) => {
			t.is(await cluster.podPresence(vm, signal()), 'present');
			await cluster.registerVm(vm, signal());
			await until(() => claims().length === 1);
			t.is(await cluster.podPresence(vm, signal()), 'present');
			remove(pod);
			add(pod);
			t.is(await cluster.podPresence(vm, signal()), 'gone');
			// This VM is unknown.
			t.is(await cluster.podPresence(next, signal()), 'present');
		},
	);

	contract('a static pod is not judged', async (t, {cluster}) => {
		t.is(
			await cluster.podPresence(
				{...vm, pod: {name: 'static-worker-0', namespace: 'default', uid: '0123456789abcdef0123456789abcdef'}},
				signal(),
			),
			'unknown',
		);
	});

	contract('waits end with their signal, with its reason', async (t, {cluster, silence}) => {
		using _ = silence();
		const reason = new Error('no longer wanted');
		const caller = new AbortController();
		const waits = [
			cluster.registerVm(vm, caller.signal),
			cluster.pullCredentials(pod, caller.signal),
			cluster.podPresence(vm, caller.signal),
		];
		caller.abort(reason);
		for (const wait of waits) {
			t.is(await t.throwsAsync(wait), reason);
		}
	});

	contract('a pod without credentials gets none', async (t, {cluster}) => {
		t.is(await cluster.pullCredentials(pod, signal()), undefined);
	});

	contract('what a pod is told can be seen', async (t, {cluster, reasons, until}) => {
		cluster.recordEvent(pod, {type: 'Warning', reason: 'PodVMEnded', message: 'It burnt'});
		await until(() => reasons(pod).length > 0);
		t.deepEqual(reasons(pod), ['PodVMEnded']);
	});
}
