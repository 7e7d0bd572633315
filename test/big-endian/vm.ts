/**
 * Plays a pod VM from its cloud-init disk on, in whatever network namespace it is started: reads the forwarder's
 * configuration as the VM would, and answers for the agent with the certificate that it finds there. Arguments: the
 * disk's path, and the address to listen on.
 */
import {answerEmpty, startForwarder} from '../support/forwarder.ts';
import {readForwarderConfiguration} from '../support/vm-disk.ts';

const [, , disk = '', address = ''] = process.argv;
const {tls, podNetwork} = await readForwarderConfiguration(disk);
await startForwarder({tls, address, port: 15_150, onConnection: answerEmpty});
process.stderr.write(`ready ${JSON.stringify(podNetwork)}\n`);
