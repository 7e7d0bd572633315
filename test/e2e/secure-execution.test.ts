/**
 * The way of a confidential VM through everything but the protection: no machine but IBM's own can protect a guest, and
 * a test has none. The daemon asks a real libvirtd over ssh what its host can do, is refused, and later allowed;
 * libvirt takes the domain with its <launchSecurity>, makes QEMU's command line of it and starts it. Then comes what is
 * not real: libvirt was told, by its own cache of what QEMU can do, that the host supports Secure Execution, and QEMU
 * is wrapped in a script that drops the object `s390-pv-guest`, with which it would refuse to start without KVM on a
 * z15. So this shows that the XML, its way and the memory are right; not that anything is protected, nor that an image
 * that was made for Secure Execution boots.
 */
import {readFile} from 'node:fs/promises';
import test from 'ava';
import type {AdaptorError} from '../../src/core/errors.ts';
import {connect} from '../../src/ttrpc/client.ts';
import {AgentClient, runCommand, startSleeper} from '../lab/agent-client.ts';
import {hypervisorSocket, startDaemon} from '../lab/daemon.ts';
import {buildGuestImage} from '../lab/image.ts';
import {settledInventory} from '../lab/inventory.ts';
import {startLab, type Lab} from '../lab/lab.ts';
import {Service} from '../lab/service.ts';
import {newSandboxId, podAnnotations, Shim} from '../lab/shim.ts';

const {signal} = new AbortController();
const emulator = '/usr/bin/qemu-system-s390x';

/** Notes what it is asked for, and does all of it but the protection. */
const wrapper = `#!/bin/sh
printf '%s\\n' "$*" >>/run/emulator-arguments
left=$#
while [ $left -gt 0 ]; do
	left=$((left - 1))
	argument=$1
	shift
	case $argument:$1 in
	-object:*s390-pv-guest*)
		left=$((left - 1))
		shift
		continue
		;;
	esac
	case $argument in
	*,confidential-guest-support=*)
		rest=\${argument#*,confidential-guest-support=}
		case $rest in *,*) rest=,\${rest#*,} ;; *) rest= ;; esac
		argument=\${argument%%,confidential-guest-support=*}$rest
		;;
	esac
	set -- "$@" "$argument"
done
# It looks for its firmware beside itself.
exec /run/emulator -L /usr/share/qemu "$@"
`;

async function onHost(lab: Lab, script: string): Promise<void> {
	const service = new Service('sh', lab.hostRun(['sh', '-euc', script], {stdio: ['ignore', 'ignore', 'pipe']}));
	if ((await service.ended) !== 0) {
		throw new Error(`${script}: ${service.tail.join('; ')}`);
	}
}

const stopLibvirtd = 'pid=$(cat /run/libvirtd.pid); kill "$pid"; while kill -0 "$pid" 2>/dev/null; do sleep 0.01; done';
const awaitLibvirtd = 'until virsh -q -c qemu:///system capabilities >/dev/null 2>&1; do sleep 0.05; done';

/** From here on libvirt believes that the host can protect guests. */
async function pretend(lab: Lab): Promise<void> {
	const startLibvirtd = (): unknown => lab.hostRun(['/usr/sbin/libvirtd'], {stdio: 'ignore'});
	await onHost(
		lab,
		`
		${stopLibvirtd}
		touch /run/emulator
		mount --bind ${emulator} /run/emulator
		cat >/run/wrapper <<'END'\n${wrapper}END
		chmod 755 /run/wrapper
		mount --bind /run/wrapper ${emulator}
	`,
	);
	startLibvirtd();
	await onHost(lab, `${awaitLibvirtd}; ${stopLibvirtd}`);
	await onHost(
		lab,
		`
		cache=/var/cache/libvirt/qemu/capabilities/$(printf %s ${emulator} | sha256sum | cut -d ' ' -f 1).xml
		sed -i "0,/<flag /s||<kvmSupportsSecureGuest/>\\n<flag name='s390-pv-guest'/>\\n<flag |" "$cache"
	`,
	);
	startLibvirtd();
	await onHost(lab, awaitLibvirtd);
}

test('XML path only: confidential starts need support of the host and then use launchSecurity', async t => {
	t.timeout(600_000);
	await using lab = await startLab({image: await buildGuestImage({}, signal), signal});
	await using daemon = await startDaemon(lab, {DISABLECVM: 'false', LIBVIRT_SWIOTLB_MEMORY: '64'}, signal);
	const shim = new Shim(lab.outside(hypervisorSocket));
	const empty = await lab.inventory();
	const create = async (name: string): Promise<{readonly id: string; readonly agentSocket: string}> => {
		const network = await lab.podNamespace(name);
		const id = newSandboxId();
		const agentSocket = await shim.createVm(
			{
				id,
				networkNamespacePath: network.netnsPath,
				annotations: podAnnotations(name, 'e2e'),
			},
			signal,
		);
		return {id, agentSocket: lab.outside(agentSocket)};
	};

	try {
		await daemon.line(/"level":"error".*no pod VM will start/, signal);
		const refused = await create('refused');
		const error = await t.throwsAsync<AdaptorError>(shim.startVm(refused.id, signal));
		t.regex(error.message, /cannot run confidential VMs.*no KVM/);
		t.deepEqual({...(await lab.inventory()), tunnels: []}, empty, 'refused before there was anything to clean up');
		await shim.stopVm(refused.id, signal);

		await pretend(lab);
		await daemon.line(/the KVM host can run confidential VMs/, signal);
		const {id, agentSocket} = await create('confidential');
		await shim.startVm(id, signal);
		const name = `podvm-confidential-${id.slice(0, 8)}`;
		const xml = await lab.virsh('dumpxml', name);
		t.regex(xml, /<launchSecurity type='s390-pv'\/>/);
		t.regex(xml, /<memory unit='KiB'>327680<\/memory>/, '256 MiB for the pod and 64 on top');
		t.is([...xml.matchAll(/<driver [^>]*iommu='on'/g)].length, 3);
		t.regex(xml, /<memballoon model='none'\/>/);
		const started =
			(await readFile(lab.outside('/run/emulator-arguments'), 'utf8'))
				.split('\n')
				.find(line => line.includes(`guest=${name}`)) ?? '';
		t.regex(started, /-machine [^ ]*confidential-guest-support=/, 'libvirt asks QEMU for protection');
		t.regex(started, /-object [^ ]*s390-pv-guest/);

		await using client = await connect(agentSocket, signal);
		const agent = new AgentClient(client);
		await startSleeper(agent, id, 'c', signal);
		t.is((await runCommand(agent, 'c', ['uname', '-m'], signal)).stdout.trim(), 's390x');
		await shim.stopVm(id, signal);
		t.deepEqual(await settledInventory(empty, lab, signal), empty);
	} catch (error) {
		t.log(daemon.tail.join('\n'));
		throw error;
	}
});
